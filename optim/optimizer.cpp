#include "optim/optimizer.h"

#include <cstddef>
#include <utility>

#include "core/ops/elementwise.h"
#include "optim/adamw.h"
#include "optim/rules.h"
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

Optimizer::Optimizer(ParamStore& params, const OptimConfig& config)
    : params_(params),
      step_(step_tensor(initial(config), params.device())),
      rates_(block_rates(params, config)),
      sums_(Tensor::zeros({2, params.values().size() / kParamBlock}, DType::f64, params.device())),
      abs_sums_(sums_.slice(0, 1).reshape({params.values().size() / kParamBlock})),
      config_(config) {}

void Optimizer::begin_step(int64_t step, int64_t steps) {
  static_assert(offsetof(StepParams, lr) == 0 && offsetof(StepParams, decay_factor) == sizeof(double));
  Tensor lr = step_.slice(0, 1), decay = step_.slice(1, 2);
  fill(lr, learning_rate(config_, step, steps));
  fill(decay, decay_factor(config_, step, steps));
  if (!std::exchange(measured_, true)) measure();
}

void Optimizer::set_updates(int64_t n) {
  StepParams p = step_params(step_);
  p.updates = double(n);
  step_.copy_from(step_tensor(p, Device::cpu));
  measured_ = false;
}

std::unique_ptr<Optimizer> make_optimizer(ParamStore& params, const OptimConfig& config) {
  switch (config.name) {
    case OptimizerKind::adamw:
      return std::make_unique<AdamW>(params, config);
  }
  throw Error("optim: unknown optimizer");
}

}  // namespace mmfree
