#pragma once
#include <bit>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "layers/step_context.h"
#include "train/run/compute_target.h"

namespace mmfree {

/// What a run continues from: nothing; the newest checkpoint of its folder, which must exist (newest) or may be missing
/// (newest_if_any); or the checkpoint at `path`.
struct ResumeFrom {
  enum Mode { nothing, newest, newest_if_any, checkpoint } mode = nothing;
  std::string path = {};  ///< only with `checkpoint`
  bool operator==(const ResumeFrom&) const = default;
};

/// What a run does if a checkpoint cannot be written.
enum class OnSaveError { carry_on, stop };

/// What the ranks of a run divide among them instead of each keeping all of it.
enum class Shard {
  none,
  optimizer,  ///< the optimizer's states and the master values of ternary matrices
  gradients,  ///< the sums of gradients too
};
inline constexpr Shard kAllShards[] = {Shard::none, Shard::optimizer, Shard::gradients};

/// Steps first .. last.
struct StepRange {
  int64_t first = 1, last = 1;
  bool operator==(const StepRange&) const = default;
};

/// "10..12", or "10" for 10..10.
std::string name_of(const StepRange& range);

/// "false", "true", "auto" or the path.
std::string name_of(const ResumeFrom& resume);
ResumeFrom parse_resume(const std::string& text);
const char* name_of(OnSaveError choice);
const char* name_of(Shard shard);
/// "auto" for nullopt.
const char* name_of(const std::optional<Recompute>& recompute);
const char* name_of(const std::optional<Products>& products);

/// The most steps of a run.
inline constexpr int64_t kMostSteps = int64_t{1} << 40;

/// Length, batch sizes, device and output of a run (section `train`).
struct TrainConfig {
  int64_t steps = 1000;          ///< optimizer steps of the whole run; 0: tokens or epochs give the length
  int64_t batch_size = 16;       ///< sequences per optimizer step
  int64_t leaves = 0;            ///< groups of sequences whose gradients add in a tree, a power of two; 0: not decided
  int64_t micro_batch_size = 0;  ///< sequences per forward pass, divides those of a leaf; 0: all of a leaf
  Shard shard = Shard::none;
  int64_t seed = 1;  ///< of initial weights and data order
  DeviceChoice device;
  ComputeChoice compute = ComputeChoice::automatic;
  std::optional<Products> backward;    ///< nullopt: what its device prefers, decided at a run's first start
  std::optional<Recompute> recompute;  ///< nullopt: as recompute_of decides
  int64_t keep_blocks = 1;             ///< the last blocks, which keep what `selective` computes again elsewhere
  bool capture = true;                 ///< GPU: record the step as a graph and replay it
  int64_t threads = 0;                 ///< OpenMP threads; 0: OpenMP's own default
  int64_t log_every = 10;              ///< steps between lines of progress and metrics
  bool tensorboard = true;             ///< write event files for TensorBoard into run_dir/tb
  int64_t eval_every = 0;              ///< steps between evaluations; 0: only at the end
  int64_t eval_tokens = 0;             ///< most tokens per evaluation during training; 0: all
  int64_t save_every = 0;              ///< steps between checkpoints; 0: only at the end
  int64_t keep_last = 3;               ///< checkpoints kept
  ResumeFrom resume;
  std::string init_from;  ///< model whose weights a new run starts with; empty: random weights
  std::string run_dir;    ///< where everything is written; load_config fills in runs/<stem of the file>
  double max_time = 0;    ///< seconds after which to save and stop; 0: no limit
  OnSaveError on_save_error = OnSaveError::carry_on;
  int64_t skip_limit = 10;        ///< consecutive skipped steps before giving up
  int64_t tokens = 0;             ///< the length in tokens; 0: not given in tokens
  double epochs = 0;              ///< the length in passes over the data; 0: not given in epochs
  int64_t keep_every = 0;         ///< checkpoints of its multiples are kept for good; 0: none
  bool keep_best = false;         ///< keep the checkpoint with the least loss in an evaluation
  int64_t early_stop = 0;         ///< evaluations in a row without a gain after which the run ends; 0: never
  double early_stop_delta = 0;    ///< a gain is a loss below the least one before by more than this
  double skip_outliers = 0;       ///< gradient norms above so many times their running mean skip the step; 0: none do
  int64_t rollback = 0;           ///< how often a run that diverges goes back to its last good checkpoint
  int64_t telemetry_every = 100;  ///< steps between lines of telemetry; 0: none
  int64_t sample_every = 0;       ///< steps between samples; 0: none
  std::vector<std::string> sample_prompts;  ///< what samples go on from; empty: the beginning of a document
  int64_t sample_tokens = 100;              ///< most tokens of a sample
  std::vector<StepRange> trace_steps;       ///< steps whose ops trace.json shows in time

  /// Whether `step` (from 1) is one of trace_steps.
  bool traces(int64_t step) const;
  /// Sequences per leaf; as long as leaves are not decided, of the whole batch.
  int64_t leaf_rows() const { return leaves > 0 ? batch_size / leaves : batch_size; }
  /// Whether the batch divides into `n` leaves.
  bool splits_into(int64_t n) const { return std::has_single_bit(uint64_t(n)) && batch_size % n == 0; }
  /// Sequences per forward pass: micro_batch_size, or those of a leaf if that is 0.
  int64_t micro_batch() const { return micro_batch_size > 0 ? micro_batch_size : leaf_rows(); }
};

}  // namespace mmfree
