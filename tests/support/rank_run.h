#pragma once
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "core/error.h"
#include "core/ranks/socket.h"
#include "tests/support/paths.h"
#include "tests/support/temp_dir.h"

namespace mmfree {

/// The program beside mmfree that plays one rank, see tests/ranks/rank_worker.cpp.
inline std::string rank_worker_path() {
  return (std::filesystem::path(program_path()).parent_path() / "rank_worker").string();
}

/// A port that nobody listens at, and that a run may take a moment later.
inline int free_port() { return tcp::listen_at(0).port; }

/// Why no run can be started by mpirun here; empty if one can.
inline std::string mpirun_problem() {
  if (!std::filesystem::exists(std::filesystem::path(program_path()).parent_path() / "libmmfree_mpi.so"))
    return "built without MPI";
  const char* path = std::getenv("PATH");
  std::istringstream folders(path ? path : "");
  for (std::string folder; std::getline(folders, folder, ':');)
    if (::access((folder + "/mpirun").c_str(), X_OK) == 0) return "";
  return "no mpirun";
}

using Environment = std::map<std::string, std::string>;  ///< an empty value: not set

/// Processes that run side by side, with files in place of their terminals.
class Processes {
 public:
  ~Processes() {
    for (const pid_t p : processes_)
      if (p > 0) ::kill(-p, SIGKILL), ::waitpid(p, nullptr, 0);
  }

  /// In a process group of its own, so that all that it starts ends with it.
  void start(std::vector<std::string> words, const Environment& environment) {
    const std::string number = std::to_string(processes_.size());
    const std::string out = dir_ / ("out" + number), err = dir_ / ("err" + number);
    std::vector<char*> argv;
    for (std::string& w : words) argv.push_back(w.data());
    argv.push_back(nullptr);
    const pid_t child = ::fork();
    if (child == 0) {
      ::setpgid(0, 0);
      ::setenv("OMP_WAIT_POLICY", "passive", 0);
      for (const auto& [name, value] : environment)
        value.empty() ? ::unsetenv(name.c_str()) : ::setenv(name.c_str(), value.c_str(), 1);
      ::dup2(::open("/dev/null", O_RDONLY), 0);
      ::dup2(::open(out.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600), 1);
      ::dup2(::open(err.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600), 2);
      ::execvp(argv[0], argv.data());
      ::_exit(127);
    }
    processes_.push_back(child);
    status_.push_back(kRunning);
  }
  size_t count() const { return processes_.size(); }
  void signal(size_t i, int number) const {
    if (processes_[i] > 0) ::kill(processes_[i], number);
  }

  static constexpr int kRunning = -1;
  /// The exit statuses, or 1000 + the signal that ended a process, or kRunning after `seconds`. Of those in `except`,
  /// it is not waited for.
  std::vector<int> wait(double seconds, const std::vector<size_t>& except = {}) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    for (;;) {
      bool all = true;
      for (size_t i = 0; i < processes_.size(); ++i) {
        collect(i);
        all = all && (processes_[i] == 0 || std::ranges::find(except, i) != except.end());
      }
      if (all || std::chrono::steady_clock::now() > until) return status_;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }
  std::string out(size_t i) const { return slurp(dir_ / ("out" + std::to_string(i))); }
  std::string err(size_t i) const { return slurp(dir_ / ("err" + std::to_string(i))); }
  /// The lines that begin with "mmfree: ", of all.
  std::vector<std::string> messages() const {
    std::vector<std::string> lines;
    for (size_t i = 0; i < count(); ++i) {
      std::istringstream text(err(i));
      for (std::string line; std::getline(text, line);)
        if (line.starts_with("mmfree: ")) lines.push_back(line);
    }
    return lines;
  }

 private:
  void collect(size_t i) {
    int status = 0;
    if (processes_[i] <= 0 || ::waitpid(processes_[i], &status, WNOHANG) != processes_[i]) return;
    processes_[i] = 0;
    status_[i] = WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  }
  TempDir dir_;
  std::vector<pid_t> processes_;
  std::vector<int> status_;
};

/// How the ranks of a run are started.
enum class By { tcp, mpi };
inline const char* name_of(By by) { return by == By::tcp ? "TCP" : "MPI"; }

/// What no process of a test may inherit.
inline Environment no_ranks() {
  Environment e;
  for (const char* name : {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
                           "TORCHELASTIC_RUN_ID", "OMP_NUM_THREADS", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS",
                           "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMI_SIZE", "MMFREE_PORT"})
    e[name] = "";
  return e;
}

/// The same for MPI's processes. Its libraries keep memory and are gone before LeakSanitizer can tell whose it is.
inline Environment no_ranks_nor_leaks() {
  Environment e = no_ranks();
  e["ASAN_OPTIONS"] = "detect_leaks=0";
  return e;
}

/// One rank of a run over TCP.
inline Environment rank_environment(int rank, int size, int port) {
  Environment e = no_ranks();
  e["RANK"] = std::to_string(rank);
  e["WORLD_SIZE"] = std::to_string(size);
  e["MASTER_ADDR"] = "127.0.0.1";
  e["MASTER_PORT"] = std::to_string(port);
  return e;
}

/// Starts `words` as `size` ranks: over TCP process r is rank r, over MPI the only process is mpirun.
inline std::unique_ptr<Processes> start_ranks(By by, int size, const std::vector<std::string>& words,
                                              const Environment& more = {}) {
  auto run = std::make_unique<Processes>();
  const int port = free_port();
  for (int r = 0; r < size && by == By::tcp; ++r) {
    Environment e = rank_environment(r, size, port);
    for (const auto& [name, value] : more) e[name] = value;
    run->start(words, e);
  }
  if (by == By::mpi) {
    Environment e = no_ranks_nor_leaks();
    for (const char* name : {"OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"}) e[name] = "1";
    e["OMPI_MCA_rmaps_base_oversubscribe"] = "1";
    for (const auto& [name, value] : more) e[name] = value;
    std::vector<std::string> all = {"mpirun", "-n", std::to_string(size)};
    all.insert(all.end(), words.begin(), words.end());
    run->start(all, e);
  }
  return run;
}

}  // namespace mmfree
