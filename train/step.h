#pragma once
#include <memory>
#include <optional>

#include "layers/lm.h"
#include "optim/adamw.h"
#include "train/config.h"
#include "train/feed.h"

namespace mmfree {

/// What came out of one optimizer step.
struct StepResult {
  int64_t step = 0;  ///< 1..steps
  double loss = 0;
  StepReport report;
};

/// Runs whole training steps: forward, backward, clip, AdamW, requantise. On a GPU the first two run kernel by kernel;
/// the third is recorded as a graph, which from then on is replayed: the same kernels on the same addresses, so the
/// same bits, without allocations or host work in between. Results come back one step late, so that the GPU never waits
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

  /// Everything from tokens to new parameters, on the step's own inputs; public for dry runs.
  void work();

 private:
  std::optional<StepResult> run_on_gpu(int64_t step, BatchFeed& feed);
  StepResult result(int64_t step, const double* numbers) const;

  LM& lm_;
  ParamStore& params_;
  AdamW& optimizer_;
  int64_t rows_, micro_, seq_len_, steps_;
  Recompute recompute_;
  bool record_;
  Tensor ids_, targets_;  ///< [rows · T]
  Tensor outcome_;        ///< [1 + kStepParams] f64: loss, then StepParams
  struct Gpu;
  std::unique_ptr<Gpu> gpu_;
};

}  // namespace mmfree
