#include "optim/adamw.h"

namespace mmfree {

AdamW::AdamW(ParamStore& params, const OptimConfig& config)
    : Optimizer(params, config),
      m_(Tensor::zeros(params.values().shape(), params.dtype(), params.device())),
      v_(Tensor::zeros(params.values().shape(), params.dtype(), params.device())) {}

void AdamW::update(const Tensor& loss) {
  begin_update(loss);
  adamw(params_.values(), my_gradients(), m_, v_, rates_, step_, my_sums_);
  share_sums();
}

/// A skipped update computes the sums, changes nothing else and reads no gradients; so any tensor can stand for these.
void AdamW::measure() {
  StepParams skipped;
  skipped.skip = kSkipUnsound;
  adamw(params_.values(), params_.values(), m_, v_, rates_, step_tensor(skipped, params_.device()), my_sums_);
  share_sums();
}

}  // namespace mmfree
