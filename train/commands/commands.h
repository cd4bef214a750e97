#pragma once

namespace CLI {
class App;
}

/// The subcommands of the program. Each function adds one to the command line; parsing runs it.
namespace mmfree {

void add_train_command(CLI::App& app);
void add_eval_command(CLI::App& app);
void add_score_command(CLI::App& app);
void add_generate_command(CLI::App& app);
void add_import_command(CLI::App& app);
void add_export_command(CLI::App& app);
void add_info_command(CLI::App& app);
void add_tokenizer_command(CLI::App& app);
void add_prepare_command(CLI::App& app);
void add_bench_command(CLI::App& app);

}  // namespace mmfree
