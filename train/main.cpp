#include <fcntl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>

#include "core/error.h"
#include "core/report.h"
#include "train/commands.h"

namespace mmfree {
namespace {

/// Where standard input, output or error is closed, the next file to be opened would take its place, and messages would
/// go into that file.
void occupy_standard_files() {
  for (int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (::fcntl(fd, F_GETFD) < 0) ::open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDWR);
}

/// What was printed must have arrived, unless whoever read it has gone.
void finish_output() {
  errno = 0;
  const bool arrived = std::fflush(stdout) == 0 && !std::ferror(stdout);
  MMFREE_CHECK(IoError, arrived || errno == EPIPE,
               "standard output: cannot be written: ", errno ? std::strerror(errno) : "a write failed");
}

}  // namespace
}  // namespace mmfree

int main(int argc, char** argv) {
  mmfree::occupy_standard_files();
  CLI::App app("mmfree trains MatMul-free and 1.58-bit language models.", "mmfree");
  app.set_version_flag("--version", "mmfree " MMFREE_VERSION);
  app.require_subcommand(1);
  mmfree::add_prepare_command(app);
  mmfree::add_tokenizer_command(app);
  mmfree::add_train_command(app);
  mmfree::add_eval_command(app);
  mmfree::add_score_command(app);
  mmfree::add_generate_command(app);
  mmfree::add_export_command(app);
  mmfree::add_import_command(app);
  mmfree::add_info_command(app);
  app.footer(
      "A first run, from text to a trained and exported model, in a few minutes:\n"
      "  bash train/quickstart.sh\n"
      "Help on one command: mmfree COMMAND --help");
  std::signal(SIGXFSZ, SIG_IGN);  // a write beyond the limit of a file's size fails instead, and is reported
  int status = 0;
  const int failed = mmfree::run_reporting([&] {
    try {
      app.parse(argc, argv);
    } catch (const CLI::ParseError& e) {
      status = app.exit(e) ? int(mmfree::Exit::usage) : 0;
    }
    mmfree::finish_output();
  });
  return failed ? failed : status;
}
