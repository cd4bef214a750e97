#pragma once
#include "autograd/parameter.h"
#include "core/ops/adamw.h"
#include "optim/optim_config.h"

namespace mmfree {

/// What one optimizer step did.
struct StepReport {
  double grad_norm = 0;  ///< L2 norm of all gradients together, before clipping
  double learning_rate = 0;
  bool skipped = false;  ///< something was not finite (see adamw_begin): parameters and moments stayed as they were
};

/// AdamW over the flat buffers of a ParamStore, with clipping to a global norm and schedules from OptimConfig. Every
/// number that changes from step to step is in a tensor on the parameters' device, so that a step can be recorded once
/// and replayed.
class AdamW {
 public:
  AdamW(ParamStore& params, const OptimConfig& config);

  /// Sets learning rate and weight decay of `step` (1..steps). Outside a recorded step.
  void begin_step(int64_t step, int64_t steps);
  /// One update from the store's gradients; the bias correction counts the updates really made. Clip factor:
  /// min(1, clip_grad / (norm + 1e-6)). Skipped if the gradients, parameters, moments, rates or the `loss` (f64 [1] or
  /// undefined) are not sound: see adamw_begin.
  void update(const Tensor& loss = Tensor());
  /// What the last update did, read from the device.
  StepReport report() const { return report(step_params(step_)); }
  static StepReport report(const StepParams& p) { return {p.grad_norm, p.lr, p.skip != 0}; }

  Tensor& m() { return m_; }                            ///< first moments, flat as ParamStore::values
  Tensor& v() { return v_; }                            ///< second moments
  const Tensor& step() const { return step_; }          ///< StepParams
  const Tensor& abs_sums() const { return abs_sums_; }  ///< of the updated values, see `adamw`
  int64_t updates() const { return int64_t(step_params(step_).updates); }
  void set_updates(int64_t n);

 private:
  ParamStore& params_;
  OptimConfig config_;
  Tensor m_, v_, step_, abs_sums_;
};

}  // namespace mmfree
