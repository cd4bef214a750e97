#include "optim/adamw.h"

namespace mmfree {

AdamW::AdamW(ParamStore& params, const OptimConfig& config)
    : Optimizer(params, config),
      m_(Tensor::zeros(params.values().shape(), params.dtype(), params.device())),
      v_(Tensor::zeros(params.values().shape(), params.dtype(), params.device())) {}

void AdamW::update(const Tensor& loss, const std::function<void(size_t)>& updated) {
  begin_update(loss);
  const Tensor gradients = my_gradients();
  for (size_t i = 0; i < params_.share().part_count(); ++i) {
    const Range part = params_.share().my_part(i, params_.size());
    const int64_t first = part.begin / kParamBlock, last = part.end / kParamBlock;
    const auto of = [&](const Tensor& t) { return t.slice(part.begin, part.end); };
    Tensor values = of(params_.values()), m = of(m_), v = of(v_);
    Tensor abs_sums = my_abs_.slice(first, last), moment_sums = my_moments_.slice(first, last);
    adamw(values, of(gradients), m, v, rates_.slice(first, last), step_, abs_sums, moment_sums);
    if (updated) updated(i);
  }
}

/// A skipped update computes the sums, changes nothing else and reads no gradients; so any tensor can stand for these.
void AdamW::measure() {
  StepParams skipped;
  skipped.skip = kSkipUnsound;
  adamw(params_.values(), params_.values(), m_, v_, rates_, step_tensor(skipped, params_.device()), my_abs_,
        my_moments_);
}

}  // namespace mmfree
