#pragma once

namespace CLI {
class App;
}

namespace mmfree {

/// Adds `tokenizer` with the subcommands `train` and `info` to the program's command line. Parsing runs them.
void add_tokenizer_command(CLI::App& app);
/// Adds `prepare`, which turns text into token shards. Parsing runs it.
void add_prepare_command(CLI::App& app);

}  // namespace mmfree
