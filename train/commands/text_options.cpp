#include "train/commands/text_options.h"

#include <CLI/CLI.hpp>

namespace mmfree {

void add_text_inputs(CLI::App& command, std::vector<std::string>& inputs) {
  const char* what =
      "text: .txt, .jsonl, .json, each also with .zst or .gz; directories, patterns, - for standard input";
  command.add_option("inputs", inputs, what)->required();
}

void add_text_options(CLI::App& command, TextOptions& text) {
  command.add_option("--text-field", text.text_field, "the key that holds a row's text; a.b: key b in object a")
      ->capture_default_str();
  command.add_option("--set-field", text.set_field, "the key that holds a row's source set")->capture_default_str();
  CLI::Option* skip = command.add_flag("--skip-malformed", text.skip_malformed, "pass over malformed rows");
  command.add_flag("--strict", text.strict, "refuse other files in directories, blank lines and empty documents")
      ->excludes(skip);
}

}  // namespace mmfree
