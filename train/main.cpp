#include <CLI/CLI.hpp>
#include <csignal>

#include "core/error.h"
#include "core/report.h"
#include "train/commands.h"

int main(int argc, char** argv) {
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
  });
  return failed ? failed : status;
}
