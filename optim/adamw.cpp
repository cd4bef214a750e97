#include "optim/adamw.h"

#include <cstddef>

#include "core/ops/elementwise.h"
#include "optim/schedule.h"

namespace mmfree {
namespace {

StepParams initial(const OptimConfig& config) {
  StepParams p;
  p.beta1 = config.betas[0];
  p.beta2 = config.betas[1];
  p.eps = config.eps;
  p.clip = config.clip_grad;
  return p;
}

}  // namespace

AdamW::AdamW(ParamStore& params, const OptimConfig& config)
    : params_(params),
      config_(config),
      m_(Tensor::zeros({params.values().size()}, params.dtype(), params.device())),
      v_(Tensor::zeros({params.values().size()}, params.dtype(), params.device())),
      step_(step_tensor(initial(config), params.device())),
      abs_sums_({params.values().size() / kParamBlock}, DType::f64, params.device()) {}

void AdamW::begin_step(int64_t step, int64_t steps) {
  static_assert(offsetof(StepParams, lr) == 0 && offsetof(StepParams, weight_decay) == sizeof(double));
  Tensor lr = step_.slice(0, 1), decay = step_.slice(1, 2);
  fill(lr, learning_rate(config_, step, steps));
  fill(decay, weight_decay(config_, step, steps));
}

void AdamW::update(const Tensor& loss) {
  std::vector<Tensor> finite = {v_, params_.values()};
  if (loss.defined()) finite.push_back(loss);
  adamw_begin(params_.grads(), step_, m_, finite);
  adamw(params_.values(), params_.grads(), m_, v_, params_.decays(), step_, abs_sums_);
}

void AdamW::set_updates(int64_t n) {
  StepParams p = step_params(step_);
  p.updates = double(n);
  step_.copy_from(step_tensor(p, Device::cpu));
}

}  // namespace mmfree
