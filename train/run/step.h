#pragma once
#include <memory>
#include <optional>

#include "data/feed.h"
#include "layers/lm.h"
#include "optim/adamw.h"
#include "train/config/config.h"

namespace mmfree {

/// What came out of one optimizer step.
struct StepResult {
  int64_t step = 0;  ///< 1..steps
  double loss = 0;
  StepReport report;
};

/// Runs whole training steps: forward, backward, clip, AdamW, requantise. On a GPU the first runs kernel by kernel; the
/// second is recorded as a graph, which from then on is replayed: the same kernels on the same addresses, so the same
/// bits, without allocations or host work in between. Results come back one step late, so that the GPU never waits
/// for the host.
class StepRunner {
 public:
  StepRunner(LM& lm, ParamStore& params, AdamW& optimizer, const RunConfig& config, Recompute recompute);
  ~StepRunner();
  StepRunner(const StepRunner&) = delete;

  /// Starts step `step` (0-based) with the feed's next batch, and gives the result of the step started before it, if
  /// that was not collected yet; on the CPU, its own.
  std::optional<StepResult> run(int64_t step, BatchFeed& feed);
  /// The result still on its way, if any.
  std::optional<StepResult> collect();

  /// Starts step `step` on the tokens and targets that the runner's own inputs hold, [rows · T] i32 each.
  void launch(int64_t step);
  Tensor& ids() { return ids_; }
  Tensor& targets() { return targets_; }
  /// Everything from tokens to new parameters; public for dry runs.
  void work();

 private:
  void load(int64_t step, BatchFeed& feed);
  void start(int64_t step);
  void finish(int64_t step);
  StepResult result(int64_t step, const double* numbers) const;

  LM& lm_;
  ParamStore& params_;
  AdamW& optimizer_;
  int64_t rows_, micro_, seq_len_, steps_;
  Recompute recompute_;
  bool record_;
  Tensor ids_, targets_;            ///< [rows · T]
  Tensor outcome_;                  ///< [1 + kStepParams] f64: loss, then StepParams
  std::optional<int64_t> pending_;  ///< the step whose result was not collected yet
  struct Gpu;
  std::unique_ptr<Gpu> gpu_;
};

}  // namespace mmfree
