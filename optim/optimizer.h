#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "autograd/parameter.h"
#include "core/ops/adamw.h"
#include "optim/optim_config.h"

namespace mmfree {

/// The gradient norms of the updates made so far: their running mean (see adamw_begin), and how many are in it.
struct NormHistory {
  double mean = 0;
  int64_t count = 0;
};

/// What one optimizer step did.
struct StepReport {
  double grad_norm = 0;  ///< L2 norm of all gradients together, before clipping
  double learning_rate = 0;
  bool skipped = false;  ///< a value was not finite or too large (see adamw_begin): nothing was changed
  bool outlier = false;  ///< it was skipped for its gradient norm alone
  NormHistory norms;     ///< with this update, unless it was skipped
};

/// A tensor of optimizer state with one element per parameter element, in the layout of ParamStore::values; of several
/// ranks that share it, this one's piece. The name identifies it in files.
struct OptimizerState {
  std::string name;
  Tensor tensor;
};

/// Updates parameters from gradients, with rates from OptimConfig's schedule and rules. Every number that changes
/// between steps is in a tensor on the parameters' device, so that a step can be recorded once and replayed. With a
/// Share it has the states of this rank's piece alone and updates that alone; update is collective.
class Optimizer {
 public:
  virtual ~Optimizer() = default;
  Optimizer(const Optimizer&) = delete;

  /// Sets the rates of `step` (1..steps). Must not be part of a recorded step.
  void begin_step(int64_t step, int64_t steps);
  /// One update from the store's gradients, which are multiplied by min(1, clip_grad / (norm + 1e-6)). Skipped if the
  /// gradients, parameters, states, rates or the `loss` (f64 [1] or undefined) are not finite or too large: see
  /// adamw_begin. Calls `updated` with each part of this rank's piece (Share::parts) as soon as its values are there,
  /// and its Σ |p| in abs_sums.
  virtual void update(const Tensor& loss = Tensor(), const std::function<void(size_t part)>& updated = {}) = 0;
  /// Before an update of a divided store, until all of this rank's piece is measured: the gradients of these elements
  /// of it, whole blocks, are there.
  void measure_gradients(const Range& range);
  /// What the last update did, read from the device.
  StepReport report() const { return report(step_params(step_)); }
  static StepReport report(const StepParams& p) {
    return {p.grad_norm, p.lr, p.skip != 0, p.skip == kSkipOutlier, {p.norm_mean, int64_t(p.norms)}};
  }

  /// This rank's piece of the gradients of the last step.
  Tensor my_gradients() const;
  virtual std::vector<OptimizerState> states() const = 0;
  const Tensor& step() const { return step_; }  ///< StepParams
  /// [P / kParamBlock] f64: Σ |p| of each block of the updated values; of several ranks that share them, this one's.
  const Tensor& abs_sums() const { return abs_sums_; }
  int64_t updates() const { return int64_t(step_params(step_).updates); }  ///< without skipped ones
  /// Continues after `n` updates with these gradient norms. The caller has filled in parameters and states.
  void set_updates(int64_t n, const NormHistory& norms = {});
  /// Skips updates whose gradient norm is above `factor` times the running mean; 0: none. Must not be part of a
  /// recorded step.
  void skip_outliers(double factor);
  /// Computes the sums of parameters and states again. Call it after these were changed from outside.
  virtual void measure() = 0;

 protected:
  /// @throws ConfigError naming a rule that matches no parameter
  Optimizer(ParamStore& params, const OptimConfig& config);
  /// Computes the scalars of the update, from the gradients, values and states of all ranks' pieces.
  void begin_update(const Tensor& loss);
  ParamStore& params_;
  Tensor step_;                 ///< StepParams
  Tensor rates_;                ///< see block_rates; of this rank's piece
  Tensor sums_;                 ///< of the values and the states, see `adamw`; the others' are those before the update
  Tensor abs_sums_;             ///< the values' part of it
  Tensor my_abs_, my_moments_;  ///< both rows of this rank's piece

 private:
  OptimConfig config_;
  Tensor squares_;  ///< of a divided store: Σ grads² of each block
  bool measured_ = false;
};

/// The optimizer that `config` names.
std::unique_ptr<Optimizer> make_optimizer(ParamStore& params, const OptimConfig& config);

}  // namespace mmfree
