#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <sstream>
#include <string>
#include <utility>

#include "core/error.h"
#include "core/system/console.h"
#include "core/system/report.h"
#include "train/commands/commands.h"

namespace mmfree {
namespace {

/// Where standard input, output or error is closed, the next file to be opened would take its place, and messages would
/// go into that file. Reading from what was closed fails, and so does writing, but for messages.
void occupy_standard_files() {
  for (const auto& [fd, mode] : {std::pair{STDIN_FILENO, O_WRONLY}, {STDOUT_FILENO, O_RDONLY}, {STDERR_FILENO, O_RDWR}})
    if (::fcntl(fd, F_GETFD) < 0) ::open("/dev/null", mode);
}

/// Corpora of many shards are open all at once.
void allow_many_files() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

/// The parser would only say that a command is missing.
void check_command(const CLI::App& app, const char* word) {
  if (!word || *word == '-') return;
  std::string known;
  for (const CLI::App* command : app.get_subcommands(nullptr)) {
    if (command->check_name(word)) return;
    known += (known.empty() ? "" : ", ") + command->get_name();
  }
  throw UsageError(concat("no command ", quote(word), "; there are ", known));
}

}  // namespace
}  // namespace mmfree

int main(int argc, char** argv) {
  mmfree::occupy_standard_files();
  mmfree::allow_many_files();
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
  mmfree::add_bench_command(app);
  app.footer(
      "A first run, from text to a trained and exported model, in a few minutes:\n"
      "  bash train/quickstart.sh\n"
      "Help on one command: mmfree COMMAND --help");
  std::signal(SIGXFSZ, SIG_IGN);  // a write beyond the limit of a file's size fails instead, and is reported
  if (argc < 2) {
    mmfree::console::err.print(app.help());
    return int(mmfree::Exit::usage);
  }
  return mmfree::run_reporting([&] {
    mmfree::check_command(app, argc > 1 ? argv[1] : nullptr);
    try {
      app.parse(argc, argv);
    } catch (const CLI::ParseError& e) {
      const bool help = e.get_exit_code() == int(CLI::ExitCodes::Success);
      if (!help) throw mmfree::UsageError(mmfree::concat(e.what(), "; --help tells more"));
      std::ostringstream text;
      app.exit(e, text, text);
      mmfree::console::out.print(text.str());
    }
  });
}
