#pragma once
#include <string>
#include <vector>

#include "data/text/document.h"

namespace CLI {
class App;
}

namespace mmfree {

/// The arguments of a command that reads text.
void add_text_inputs(CLI::App& command, std::vector<std::string>& inputs);
/// --text-field, --set-field, --skip-malformed, --strict.
void add_text_options(CLI::App& command, TextOptions& text);

}  // namespace mmfree
