#pragma once
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <string>
#include <vector>

#include "tests/support/paths.h"
#include "tests/support/temp_dir.h"

namespace mmfree {

/// The built program in a process of its own, with files in place of its terminal.
class Program {
 public:
  /// What takes the program's output instead of a file; -1: a file.
  struct Output {
    int out = -1, err = -1;
  };
  explicit Program(const std::vector<std::string>& arguments, const std::string& input = "")
      : Program(arguments, input, {-1, -1}) {}
  Program(const std::vector<std::string>& arguments, const std::string& input, Output output) {
    spit(dir_ / "in", input);
    std::vector<std::string> words = {program_path()};
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (std::string& w : words) argv.push_back(w.data());
    argv.push_back(nullptr);
    const std::string in = dir_ / "in", out = dir_ / "out", err = dir_ / "err";
    process_ = fork();
    if (process_ == 0) {
      setenv("OMP_WAIT_POLICY", "passive", 0);
      dup2(open(in.c_str(), O_RDONLY), 0);
      dup2(output.out >= 0 ? output.out : open(out.c_str(), O_WRONLY | O_CREAT, 0600), 1);
      dup2(output.err >= 0 ? output.err : open(err.c_str(), O_WRONLY | O_CREAT, 0600), 2);
      execv(argv[0], argv.data());
      _exit(127);
    }
  }
  ~Program() {
    if (process_ > 0) kill(process_, SIGKILL), wait();
  }
  Program(const Program&) = delete;
  /// Nothing if it is known to have ended: process 0 would be everyone around.
  void signal(int number) const {
    if (process_ > 0) kill(process_, number);
  }
  /// The exit status, or 1000 + the signal that ended it.
  int wait() {
    collect(0);
    return status_;
  }
  bool running() {
    collect(WNOHANG);
    return process_ > 0;
  }
  std::string out() const { return slurp(dir_ / "out"); }
  std::string err() const { return slurp(dir_ / "err"); }

 private:
  void collect(int options) {
    int status = 0;
    if (process_ <= 0 || waitpid(process_, &status, options) != process_) return;
    process_ = 0;
    status_ = WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  }

  TempDir dir_;
  pid_t process_ = 0;
  int status_ = -1;
};

}  // namespace mmfree
