#pragma once
#include <string>

#include "train/inference/model.h"

namespace CLI {
class App;
}

namespace mmfree {

/// What eval, score and generate have in common: which model, and where it computes.
struct ModelOptions {
  std::string model, tokenizer, device = "auto", compute = "auto";
};

/// Adds the argument `model` and the options --tokenizer, --device and --compute to a command.
void add_model_options(CLI::App& command, ModelOptions& options);

/// The model, ready to compute; on GPU local_rank of those that this process sees, or the only one. @throws what
/// load_model and choose_target throw
Model load_model(const ModelOptions& options, int local_rank = 0);

}  // namespace mmfree
