#pragma once
#include "autograd/parameter.h"
#include "optim/optim_config.h"

namespace mmfree {

/// What one optimizer step did.
struct StepReport {
  double grad_norm = 0;  ///< L2 norm of all gradients together, before clipping
  double learning_rate = 0;
  bool skipped = false;  ///< the norm was not finite: parameters and moments stayed as they were
};

/// AdamW over the flat buffers of a ParamStore, with clipping to a global norm and schedules from OptimConfig.
class AdamW {
 public:
  AdamW(ParamStore& params, const OptimConfig& config);

  /// One update from the store's gradients. `step` (1..steps) drives the schedules; the bias correction counts the
  /// updates really made. Clip factor: min(1, clip_grad / (norm + 1e-6)).
  StepReport update(int64_t step, int64_t steps);

  Tensor& m() { return m_; }  ///< first moments, flat as ParamStore::values
  Tensor& v() { return v_; }  ///< second moments
  int64_t updates() const { return updates_; }
  void set_updates(int64_t n) { updates_ = n; }

 private:
  ParamStore& params_;
  OptimConfig config_;
  Tensor m_, v_;
  int64_t updates_ = 0;
};

}  // namespace mmfree
