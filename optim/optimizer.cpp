#include "optim/optimizer.h"

#include <cstddef>
#include <utility>

#include "core/ops/blocks.h"
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
      rates_(params.share().my_blocks(block_rates(params, config))),
      sums_(params.share().zeros({2, params.size() / kParamBlock}, DType::f64, params.device())),
      abs_sums_(sums_.slice(0, 1).reshape({sums_.cols()})),
      my_abs_(params.share().my_blocks(abs_sums_)),
      my_moments_(params.share().my_blocks(sums_.slice(1, 2).reshape({sums_.cols()}))),
      config_(config) {
  if (params.share().group) squares_ = params.share().zeros({sums_.cols()}, DType::f64, params.device());
}

Tensor Optimizer::my_gradients() const {
  return params_.divides_gradients() ? params_.grads() : params_.share().mine(params_.grads());
}

void Optimizer::begin_update(const Tensor& loss) {
  const Share& share = params_.share();
  if (!share.group) return adamw_begin(params_.grads(), step_, sums_, loss);
  const auto row = [&](int64_t i) { return sums_.slice(i, i + 1).reshape({sums_.cols()}); };
  share.gather_blocks({squares_, row(0), row(1)});
  adamw_begin_blocks(squares_, step_, sums_, loss);
}

void Optimizer::measure_gradients(const Range& range) {
  const Share& share = params_.share();
  if (!share.group) return;
  const Range mine{range.begin - share.begin(), range.end - share.begin()};
  Tensor squares = share.my_blocks(squares_).slice(mine.begin / kParamBlock, mine.end / kParamBlock);
  squares_of_blocks(my_gradients().slice(mine.begin, mine.end), squares);
}

void Optimizer::begin_step(int64_t step, int64_t steps) {
  static_assert(offsetof(StepParams, lr) == 0 && offsetof(StepParams, decay_factor) == sizeof(double));
  Tensor lr = step_.slice(0, 1), decay = step_.slice(1, 2);
  fill(lr, learning_rate(config_, step, steps));
  fill(decay, decay_factor(config_, step, steps));
  if (!std::exchange(measured_, true)) measure();
}

void Optimizer::skip_outliers(double factor) {
  constexpr auto kAt = int64_t(offsetof(StepParams, outlier) / sizeof(double));
  Tensor outlier = step_.slice(kAt, kAt + 1);
  fill(outlier, factor);
}

void Optimizer::set_updates(int64_t n, const NormHistory& norms) {
  StepParams p = step_params(step_);
  p.updates = double(n);
  p.norm_mean = norms.mean;
  p.norms = double(norms.count);
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
