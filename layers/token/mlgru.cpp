#include "layers/token/mlgru.h"

namespace mmfree {

Residual MlGru::operator()(const Residual& in, const Var& block_norm, StepContext& step) const {
  const auto y = norm_linear(in.source(), block_norm, eps, BitLinear::kEps,
                             {i_proj.projection(), f_proj.projection(), g_proj.projection()}, step.keep_rounded());
  const Var &a = y[0], &z = y[1], &g = y[2];
  const Var h = mlgru_scan(z, a, step.bound, step.batch, step.state ? &step.state->at(0) : nullptr, step.starts);
  const Source gate =
      order == GateOrder::reference ? Source::gate(g, h, gate_norm, eps) : Source::gate(h, g, gate_norm, eps);
  const Var out =
      norm_linear(gate, Var(), BitLinear::kEps, BitLinear::kEps, {o_proj.projection()}, step.keep_rounded())[0];
  return {in.value(y), out};
}

}  // namespace mmfree
