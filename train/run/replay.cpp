#include "train/run/replay.h"

#include <filesystem>
#include <memory>
#include <optional>

#include "core/ranks/agreement.h"
#include "core/system/signals.h"
#include "layers/parameters.h"
#include "train/run/digest.h"
#include "train/run/metrics.h"
#include "train/run/recompute.h"
#include "train/run/run_batches.h"
#include "train/run/run_folder.h"
#include "train/run/shards.h"
#include "train/run/step.h"

namespace mmfree {
namespace {

/// The newest checkpoint of a step before `step`, empty without one. Rank 0 looks.
std::string checkpoint_before(const std::string& run_dir, int64_t step, Group& group) {
  std::string path;
  if (group.rank() == 0)
    for (const int64_t s : checkpoint_steps(run_dir))
      if (s < step) path = checkpoint_path(run_dir, s);
  return group.gather_texts(path)[0];
}

/// The configuration of the run, from the checkpoint or, without one, as the run wrote it at its start.
RunConfig config_of(const std::string& run_dir, const std::string& path, const std::vector<std::string>& overrides) {
  const std::string resolved = (std::filesystem::path(run_dir) / "config.resolved.yaml").string();
  if (path.empty()) return load_config(resolved, overrides);
  return load_config_text(to_yaml(Checkpoint(path, h5::Verify::while_reading).config()), resolved, overrides);
}

/// A run's steps without a folder.
class Again {
 public:
  Again(const RunConfig& config, const std::string& path, Group& group)
      : group_(group),
        config_(config),
        target_(choose_target(config, group)),
        corpus_(config.data),
        batches_(corpus_, batch_options(config)),
        params_(parameter_specs(config.model), DType::f32, target_.device,
                divide(config.model, group, config.train.shard)),
        lm_(params_, config.model, target_.compute, backward_products(target_, config.train.backward)),
        optimizer_(make_optimizer(params_, config.optim)) {
    runner_.emplace(lm_, params_, *optimizer_, config_, recompute_of(config, target_.device), group);
    runner_->open_exchange();
    if (path.empty())
      params_.initialise(uint64_t(config.train.seed));
    else
      load(path);
    lm_.requantise();
    feed_ = std::make_unique<BatchFeed>(batches_, samples_of(config_, state_, group.rank(), group.size()),
                                        config_.train.steps - state_.step, config_.data.seq_len,
                                        target_.device == Device::cuda);
  }

  int64_t begin() const { return state_.step; }
  /// Makes the next step; gives its result, or on a GPU that of the step before it, if there is one.
  std::optional<StepResult> step(int64_t number) { return runner_->run(number, *feed_); }
  std::optional<StepResult> last() { return runner_->collect(); }
  std::string weights() const { return weights_digest(params_.values(), params_.share()); }

 private:
  void load(const std::string& path) {
    const Checkpoint file(path, h5::Verify::while_reading);
    MMFREE_CHECK(DataError, file.has_states(), path, ": has no optimizer state, so no step can be made from it");
    file.load(params_, optimizer_.get(), runner_->carried(), runner_->first_row(), config_.train.batch_size);
    state_ = file.state();
    MMFREE_CHECK(DataError, state_.data == corpus_.fingerprint(), path,
                 ": the training shards are not those of the run");
  }

  Group& group_;
  RunConfig config_;
  ComputeTarget target_;
  Corpus corpus_;
  Batches batches_;
  ParamStore params_;
  LM lm_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<BatchFeed> feed_;  // outlives the runner, which may be copying from its memory
  std::optional<StepRunner> runner_;
  LoopState state_;
};

void check_step(const StepResult& result, const std::map<int64_t, StepDigests>& told, ReplayResult& compared) {
  const auto found = told.find(result.step);
  if (found == told.end() || found->second.step.empty()) return;
  const double norm = result.report.grad_norm;
  MMFREE_CHECK(DataError, step_digest(result.loss, norm) == found->second.step, "step ", result.step,
               ": differs from the run: loss ", result.loss, ", gradient norm ", norm, " here, ", found->second.loss,
               " and ", found->second.grad_norm,
               " in its metrics; hardware, libraries, program or data are not what they were");
  ++compared.steps;
}

}  // namespace

ReplayResult replay(const std::string& run_dir, int64_t step, const std::vector<std::string>& overrides, Group& group) {
  const std::map<int64_t, StepDigests> told = read_digests((std::filesystem::path(run_dir) / "metrics.jsonl").string());
  const std::string path = checkpoint_before(run_dir, step, group);
  RunConfig config = config_of(run_dir, path, overrides);
  if (config.train.leaves == 0) config.train.leaves = 1;                  // written before there were leaves
  if (!config.train.backward) config.train.backward = Products::compute;  // and before there was a choice
  MMFREE_CHECK(ConfigError, config.train.leaves % group.size() == 0, run_dir, ": the ", config.train.leaves,
               " leaves of a batch cannot be shared by ", group.size(), " ranks; start as many as divide them");
  MMFREE_CHECK(ConfigError, step <= config.train.steps, run_dir, ": has ", config.train.steps, " steps, not ", step);
  MMFREE_CHECK(ConfigError, !path.empty() || config.train.init_from.empty(), run_dir,
               ": has no checkpoint before step ", step, ", and started from ", config.train.init_from,
               "; name a later step");
  Again again(config, path, group);
  ReplayResult result{again.begin(), step, 0, 0, path.empty() ? "the start" : path};
  for (int64_t at = result.from; at < step; ++at) {
    throw_if_stopped();
    if (const auto done = again.step(at)) check_step(*done, told, result);
    const auto found = told.find(at + 1);
    if (at + 1 < step && (found == told.end() || found->second.weights.empty())) continue;
    if (const auto done = again.last()) check_step(*done, told, result);
    if (found == told.end() || found->second.weights.empty()) continue;
    MMFREE_CHECK(DataError, again.weights() == found->second.weights, "step ", at + 1,
                 ": the weights differ from those of the run's checkpoint, though no step before told so; hardware, "
                 "libraries or program are not what they were");
    ++result.checkpoints;
  }
  MMFREE_CHECK(DataError, result.steps + result.checkpoints > 0, run_dir, ": its metrics tell of no step from ",
               result.from + 1, " to ", step, "; name one with a line in metrics.jsonl");
  return result;
}

}  // namespace mmfree
