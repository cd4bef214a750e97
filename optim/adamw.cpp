#include "optim/adamw.h"

namespace mmfree {

AdamW::AdamW(ParamStore& params, const OptimConfig& config)
    : Optimizer(params, config),
      m_(Tensor::zeros({params.values().size()}, params.dtype(), params.device())),
      v_(Tensor::zeros({params.values().size()}, params.dtype(), params.device())) {}

void AdamW::update(const Tensor& loss) {
  adamw_begin(params_.grads(), step_, sums_, loss);
  adamw(params_.values(), params_.grads(), m_, v_, rates_, step_, sums_);
}

/// A skipped update computes the sums, changes nothing else and reads no gradients; so any tensor can stand for these.
void AdamW::measure() {
  StepParams skipped;
  skipped.skip = 1;
  adamw(params_.values(), params_.values(), m_, v_, rates_, step_tensor(skipped, params_.device()), sums_);
}

}  // namespace mmfree
