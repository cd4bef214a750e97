#include "train/commands/model_options.h"

#include <CLI/CLI.hpp>

namespace mmfree {

void add_model_options(CLI::App& command, ModelOptions& o) {
  command.add_option("model", o.model, "checkpoint, run folder, ternary export or Hugging Face folder")->required();
  command.add_option("--tokenizer", o.tokenizer, "SentencePiece model, if the model file holds none");
  command.add_option("--device", o.device, "auto (a GPU if there is one), cpu, cuda or cuda:N")->capture_default_str();
  command.add_option("--compute", o.compute, "activations: auto (bf16 on a GPU, f32 on the CPU), f32 or bf16")
      ->check(CLI::IsMember({"auto", "f32", "bf16"}))
      ->capture_default_str();
}

Model load_model(const ModelOptions& o, int local_rank) {
  const ComputeTarget target = choose_target(o.device, o.compute, "--device", local_rank);
  MMFREE_CHECK(ConfigError, target.device != Device::cpu || o.compute != name_of(ComputeChoice::bf16),
               "--device: bf16 activations need a GPU; the CPU computes in f32");
  if (target.device == Device::cpu) return map_model(o.model, o.tokenizer);
  return move_model(load_model(o.model, o.tokenizer), target);
}

}  // namespace mmfree
