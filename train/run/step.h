#pragma once
#include <functional>
#include <memory>
#include <optional>

#include "core/ranks/agreement.h"
#include "data/feed.h"
#include "layers/lm.h"
#include "optim/optimizer.h"
#include "train/config/config.h"
#include "train/run/beside.h"
#include "train/run/gradient_exchange.h"
#include "train/run/leaf_sums.h"

namespace mmfree {

/// What came out of one optimizer step.
struct StepResult {
  int64_t step = 0;    ///< 1..steps
  int64_t scored = 0;  ///< targets of the batch that are not kIgnoreTarget; 0: nothing was computed, no update made
  double loss = 0;     ///< mean over the scored targets, NaN without any
  StepReport report;
};

/// Runs whole training steps: forward, backward, clip, update, requantise. A step consists of parts: the first
/// micro-batch of each leaf, whose gradients are written, those after it, whose gradients are added, and the update.
/// Between leaves LeafSums adds their gradients, and GradientExchange those of several ranks: on GPUs perhaps beside
/// the last micro-batch, which then is a part of its own. On a GPU the first step runs kernel by kernel; in the second
/// each kind of part is recorded as a graph, which from then on is replayed: the same kernels on the same addresses, so
/// the same bits, without allocations or host work in between. A watched step (op_watch) runs kernel by kernel again.
/// Results come back one step late, so that the GPU never waits for the host.
class StepRunner {
 public:
  /// The ranks of `group` share the leaves of each batch, which train.leaves numbers. Every later call is then
  /// collective.
  StepRunner(LM& lm, ParamStore& params, Optimizer& optimizer, const RunConfig& config, Recompute recompute,
             Group& group = lone_group());
  ~StepRunner();
  StepRunner(const StepRunner&) = delete;
  /// Before the first step: lets the ranks exchange gradients in the fastest way that all have. Without it they take
  /// one that always works.
  void open_exchange();

  /// Starts step `step` (0-based) with the feed's next batch, this rank's rows, and gives the result of the step
  /// started before it, if that was not collected yet; on the CPU, its own. A batch that cannot be read, by any rank,
  /// throws here, in its own step: the one before it is left to be collected.
  std::optional<StepResult> run(int64_t step, BatchFeed& feed);
  /// The result still on its way, if any.
  std::optional<StepResult> collect();

  /// Starts step `step` on the tokens and targets that the runner's own inputs hold, [rows · T] i32 each, of which
  /// `scored` targets are not kIgnoreTarget over all ranks, and with data.reset_state or carry_state on `starts`, [rows
  /// · T] u8.
  void launch(int64_t step, int64_t scored);
  Tensor& ids() { return ids_; }
  Tensor& targets() { return targets_; }
  Tensor& starts() { return starts_; }
  /// With data.carry_state the state of each of this rank's rows after the last step, [rows, ...] per layer, zeros at
  /// first; else empty. Its tensors stay where they are. It goes on through skipped updates and batches without a
  /// scored target.
  const DecodeState& carried() const { return carried_; }
  /// The same of all ranks' rows; with several ranks a copy on the host. Collective.
  DecodeState all_carried() const;
  /// The first of this rank's rows in the batch.
  int64_t first_row() const { return group_.rank() * rows_; }
  /// Everything from tokens to new parameters; public for dry runs.
  void work();
  /// The same for dry runs in a hurry: each kind of part once. `next(times)` is called before each, with how often a
  /// step has it.
  void rehearse(const std::function<void(int64_t times)>& next);

 private:
  enum class Part { first, later, last, only, update };
  static constexpr int kParts = 5;
  struct Pending {
    int64_t step, scored;
    uint64_t sent;  ///< bytes that launches of recorded parts sent
  };

  void each_part(const std::function<void(Part)>& run);
  void compute(Part part);
  void compute_micro_batch(Part part);
  void take_rows(int64_t row);
  void return_state(int64_t row);
  void end_leaf(int64_t leaf);
  void play(Part part);
  int64_t load(int64_t step, BatchFeed& feed);
  int64_t fill_inputs(int64_t step, BatchFeed& feed);
  Part part_of(int64_t row) const;
  void update();
  void start(int64_t step, int64_t scored, const std::function<void()>& after_part);
  void finish(int64_t step, int64_t scored);
  StepResult result(const Pending& pending);

  LM& lm_;
  ParamStore& params_;
  Optimizer& optimizer_;
  Group& group_;
  int64_t rows_, leaf_rows_, micro_, seq_len_, steps_;
  Recompute recompute_;
  int64_t keep_blocks_;
  bool record_;
  Tensor ids_, targets_, starts_;  ///< [rows · T]; starts undefined without data.reset_state and carry_state
  Tensor micro_ids_, micro_targets_, micro_starts_;  ///< [micro · T]: the micro-batch at work, always at one place
  DecodeState carried_, micro_carried_;              ///< of all rows, and of the micro-batch at work
  Tensor scale_;                                     ///< [1] f64: 1 / scored targets of the batch
  Tensor outcome_;                                   ///< [1 + kStepParams] f64: loss, then StepParams
  Tensor losses_;                                    ///< [leaves] f64
  std::optional<LeafSums> sums_;                     ///< of this rank's leaves, if there are several
  std::optional<GradientExchange> exchange_;         ///< with several ranks
  bool learns_ = true;                               ///< the step at work has scored targets
  Beside beside_;                                    ///< for what an update sends
  uint64_t sent_ = 0;                                ///< of the step at work, see Pending
  std::optional<Pending> pending_;                   ///< the step whose result was not collected yet
  struct Gpu;
  std::unique_ptr<Gpu> gpu_;
};

}  // namespace mmfree
