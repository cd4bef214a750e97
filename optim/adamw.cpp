#include "optim/adamw.h"

namespace mmfree {

AdamW::AdamW(ParamStore& params, const OptimConfig& config, Share share)
    : Optimizer(params, config, std::move(share)),
      m_(Tensor::zeros({share_.count(params.values().size())}, params.dtype(), params.device())),
      v_(Tensor::zeros(m_.shape(), params.dtype(), params.device())) {}

void AdamW::update(const Tensor& loss) {
  begin_update(loss);
  Tensor values = share_.mine(params_.values());
  adamw(values, share_.mine(params_.grads()), m_, v_, rates_, step_, my_sums_);
  share_sums();
}

/// A skipped update computes the sums, changes nothing else and reads no gradients; so any tensor can stand for these.
void AdamW::measure() {
  StepParams skipped;
  skipped.skip = 1;
  Tensor values = share_.mine(params_.values());
  adamw(values, values, m_, v_, rates_, step_tensor(skipped, params_.device()), my_sums_);
  share_sums();
}

}  // namespace mmfree
