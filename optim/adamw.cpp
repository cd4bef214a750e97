#include "optim/adamw.h"

#include <algorithm>
#include <cmath>

#include "core/ops/adamw.h"
#include "core/ops/elementwise.h"
#include "optim/schedule.h"

namespace mmfree {

AdamW::AdamW(ParamStore& params, const OptimConfig& config)
    : params_(params),
      config_(config),
      m_(Tensor::zeros({params.values().size()}, params.dtype())),
      v_(Tensor::zeros({params.values().size()}, params.dtype())) {}

StepReport AdamW::update(int64_t step, int64_t steps) {
  StepReport report;
  report.learning_rate = learning_rate(config_, step, steps);
  report.grad_norm = std::sqrt(sum_of_squares(params_.grads()));
  report.skipped = !std::isfinite(report.grad_norm);
  if (report.skipped) return report;
  ++updates_;
  StepParams p;
  p.lr = report.learning_rate;
  p.beta1 = config_.betas[0];
  p.beta2 = config_.betas[1];
  p.eps = config_.eps;
  p.weight_decay = weight_decay(config_, step, steps);
  p.bias1 = 1 - std::pow(p.beta1, double(updates_));
  p.bias2 = 1 - std::pow(p.beta2, double(updates_));
  if (config_.clip_grad > 0) p.grad_scale = std::min(1.0, config_.clip_grad / (report.grad_norm + 1e-6));
  adamw(params_.values(), params_.grads(), m_, v_, params_.decays(), p);
  return report;
}

}  // namespace mmfree
