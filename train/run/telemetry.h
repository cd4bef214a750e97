#pragma once
#include <string>
#include <vector>

#include "core/ranks/group.h"
#include "layers/lm.h"
#include "optim/optimizer.h"
#include "train/config/config.h"
#include "train/run/metrics.h"

namespace mmfree {

/// A ternary matrix [rows, cols] that telemetry tells of. `name` is that of its projection without "model.".
struct WatchedMatrix {
  std::string name;
  const BitLinear* projection;
  int64_t rows, cols;
  double lr_factor;  ///< of its learning rate
};

/// Every ternary matrix of a model with latent weights in `params`.
std::vector<WatchedMatrix> watched_matrices(const LM& lm, const ParamStore& params, const OptimConfig& config);

/// Measures each ternary matrix and its input. What it computes is part of no step and changes none: it counts codes,
/// adds squares of gradients that are there, and passes the first tokens of the last batch through the model once more.
class Telemetry {
 public:
  /// Tokens of that pass, at most: whole sequences of the batch's first leaf, or the beginning of the first one.
  static constexpr int64_t kTokens = 2048;

  /// `lm`, `params` and `optimizer` must outlive it. Call it before a step is recorded: on a GPU rank 0 keeps two bits
  /// for each weight.
  Telemetry(const LM& lm, const ParamStore& params, const Optimizer& optimizer, const RunConfig& config,
            const Group& group);
  /// Whether a line is due after `step` steps; never of a model without ternary matrices.
  bool due(int64_t step) const { return every_ > 0 && step > 0 && step % every_ == 0; }
  /// From here on flips are counted, after `step` steps. Call it where a run starts or goes on.
  void restart(int64_t step);
  /// The line of metrics after `step` steps, whose last batch began with `ids` and `starts`; empty but in rank 0. Keys:
  ///
  ///   ternary/M/zeros      share of the codes that are 0
  ///   ternary/M/scale      what the codes are multiplied by
  ///   ternary/M/flips      share of the codes that changed since the line before; only where this process saw that
  ///   ternary/M/dead_rows  rows whose codes are all 0, where there are any
  ///   ternary/M/grad_norm  L2 norm of the last step's gradient, before clipping
  ///   act/M/rms            root mean square of what the norm before M reads; without a norm, of M's rounded input
  ///   act/M/absmax_over_rms  of M's rounded input: mean over the rows
  ///   act/M/saturation     share of the codes of M's input that are 127 or −127
  ///   ternary/all/zeros, ternary/all/flips, act/all/saturation: of all matrices together
  ///
  /// M: each name of watched_matrices; of matrices with one input only the first has act/M. Six digits are kept. The
  /// bits depend on no number of threads, ranks or micro-batches. Collective.
  Metrics measure(int64_t step, const Tensor& ids, const Tensor& starts);
  const std::vector<WatchedMatrix>& matrices() const { return matrices_; }

 private:
  std::vector<double> block_squares() const;
  void add_codes(const std::vector<double>& squares, bool flips, Metrics& line);
  void add_inputs(const Tensor& ids, const Tensor& starts, Metrics& line) const;
  Tensor count_codes();

  const LM& lm_;
  const ParamStore& params_;
  const Optimizer& optimizer_;
  bool leads_;
  int64_t every_, seq_len_, leaf_rows_;
  int64_t since_ = -1;  ///< steps before the codes of before_, -1 without any
  std::vector<WatchedMatrix> matrices_;
  std::vector<Tensor> before_;  ///< of each matrix, see ternary_code_counts
};

}  // namespace mmfree
