#pragma once
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "layers/parameters.h"
#include "optim/adamw.h"
#include "tests/support/compare.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"
#include "train/run/run_folder.h"

namespace mmfree {

/// A run of which only the checkpoints matter: the state after each step is made up from the step's number.
class SavedRun {
 public:
  SavedRun() {
    config_.model = tiny_model_config();
    config_.model.num_hidden_layers = 1;
    config_.data.train = {"/corpus/train-*.h5"};
    config_.train.run_dir = "run";
    params_.emplace(parameter_specs(config_.model), DType::f32);
    optimizer_.emplace(*params_, config_.optim);
  }

  /// Saves as the trainer does, keeping `keep` checkpoints. `saved` is called once the save has returned.
  template <class Saved>
  void save(const std::string& run_dir, int64_t step, int64_t keep, Saved&& saved) {
    assume(step);
    save_now(run_dir, step, keep, saved);
  }
  /// The same of the state that `assume` made.
  template <class Saved>
  void save_now(const std::string& run_dir, int64_t step, int64_t keep, Saved&& saved) {
    save_checkpoint(checkpoint_path(run_dir, step), config_, *params_, {params_->values(), optimizer_->states()},
                    state_of(step), tokenizer_);
    saved();
    retain_checkpoints(run_dir, step, {keep});
  }

  /// Gives parameters and moments the values of `step`.
  void assume(int64_t step) {
    randomise(*params_, uint64_t(step));
    for (size_t i = 0; i < params_->specs().size(); ++i)
      for (auto [flat, factor] : {std::pair{optimizer_->m(), -2.0f}, {optimizer_->v(), 0.5f}}) {
        Tensor to = params_->view(flat, i), from = params_->view(params_->values(), i);
        for (int64_t k = 0; k < to.size(); ++k) to.mut<float>()[k] = factor * from.data<float>()[k];
      }
  }

  /// Loads a checkpoint. Returns its step if every bit is what `save` wrote for it. @throws Error if not.
  int64_t load(const Checkpoint& file) {
    const std::string& path = file.path();
    ParamStore params(parameter_specs(config_.model), DType::f32);
    AdamW optimizer(params, config_.optim);
    file.load(params, &optimizer);
    const LoopState& got = file.state();
    const LoopState expected = state_of(got.step);
    assume(got.step);
    const std::pair<const char*, bool> same[] = {
        {"parameters", same_bits(params.values(), params_->values())},
        {"first moments", same_bits(optimizer.m(), optimizer_->m())},
        {"second moments", same_bits(optimizer.v(), optimizer_->v())},
        {"tokenizer", file.tokenizer_model() == tokenizer_},
        {"configuration", compare(file.config(), config_).empty()},
        {"counters", got.updates == expected.updates && got.tokens == expected.tokens && got.data == expected.data &&
                         got.skipped_in_row == expected.skipped_in_row && optimizer.updates() == expected.updates}};
    for (const auto& [what, is_same] : same)
      MMFREE_CHECK(Error, is_same, path, ": loads, but its ", what, " are not what was saved");
    return got.step;
  }

  /// What a start of the trainer does with the folder. Returns the step it would go on from, 0 if there is none.
  /// @throws Error if leftovers of a save remain, or the newest checkpoint is not what was saved.
  int64_t restart(const std::string& run_dir) {
    remove_unfinished_checkpoints(run_dir);
    for (const auto& entry : std::filesystem::directory_iterator(run_dir + "/checkpoints"))
      MMFREE_CHECK(Error, entry.path().extension() == ".h5", entry.path().string(), ": a leftover remains");
    std::vector<std::string> warnings;
    int64_t step = 0;
    newest_checkpoint(run_dir, into(warnings), [&](const Checkpoint& file) { step = load(file); });
    MMFREE_CHECK(Error, warnings.empty(), "a damaged checkpoint under its final name: ", warnings.front());
    return step;
  }

 private:
  static LoopState state_of(int64_t step) { return {step, step - 1, step % 3, step * 68, concat("data of ", step)}; }

  RunConfig config_;
  std::optional<ParamStore> params_;
  std::optional<AdamW> optimizer_;
  std::string tokenizer_ = std::string(5000, 't') + "end";
};

/// A run folder with one checkpoint, of step `step`.
inline void start_run(SavedRun& run, const std::string& run_dir, int64_t step) {
  std::filesystem::create_directories(run_dir + "/checkpoints");
  run.save(run_dir, step, 1, [] {});
}

}  // namespace mmfree
