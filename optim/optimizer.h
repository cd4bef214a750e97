#pragma once
#include <memory>
#include <string>
#include <vector>

#include "autograd/parameter.h"
#include "core/ops/adamw.h"
#include "optim/optim_config.h"

namespace mmfree {

/// What one optimizer step did.
struct StepReport {
  double grad_norm = 0;  ///< L2 norm of all gradients together, before clipping
  double learning_rate = 0;
  bool skipped = false;  ///< a value was not finite (see adamw_begin): parameters and states are unchanged
};

/// A tensor of optimizer state with one element per parameter element, in the layout of ParamStore::values. The name
/// identifies it in files.
struct OptimizerState {
  std::string name;
  Tensor tensor;
};

/// Updates parameters from gradients, with rates from OptimConfig's schedule and rules. Every number that changes
/// between steps is in a tensor on the parameters' device, so that a step can be recorded once and replayed.
class Optimizer {
 public:
  virtual ~Optimizer() = default;
  Optimizer(const Optimizer&) = delete;

  /// Sets the rates of `step` (1..steps). Must not be part of a recorded step.
  void begin_step(int64_t step, int64_t steps);
  /// One update from the store's gradients, which are multiplied by min(1, clip_grad / (norm + 1e-6)). Skipped if the
  /// gradients, parameters, states, rates or the `loss` (f64 [1] or undefined) are not finite or too large: see
  /// adamw_begin.
  virtual void update(const Tensor& loss = Tensor()) = 0;
  /// What the last update did, read from the device.
  StepReport report() const { return report(step_params(step_)); }
  static StepReport report(const StepParams& p) { return {p.grad_norm, p.lr, p.skip != 0}; }

  virtual std::vector<OptimizerState> states() const = 0;
  const Tensor& step() const { return step_; }  ///< StepParams
  /// [P / kParamBlock] f64: Σ |p| of each block of the updated values.
  const Tensor& abs_sums() const { return abs_sums_; }
  int64_t updates() const { return int64_t(step_params(step_).updates); }  ///< without skipped ones
  /// Continues after `n` updates. The caller has filled in parameters and states.
  void set_updates(int64_t n);
  /// Computes the sums of parameters and states again. Call it after these were changed from outside.
  virtual void measure() = 0;

 protected:
  /// @throws ConfigError naming a rule that matches no parameter
  Optimizer(ParamStore& params, const OptimConfig& config);
  ParamStore& params_;
  Tensor step_;      ///< StepParams
  Tensor rates_;     ///< see block_rates
  Tensor sums_;      ///< of the values and the states, see `adamw`
  Tensor abs_sums_;  ///< the values' part of it

 private:
  OptimConfig config_;
  bool measured_ = false;
};

/// The optimizer that `config` names.
std::unique_ptr<Optimizer> make_optimizer(ParamStore& params, const OptimConfig& config);

}  // namespace mmfree
