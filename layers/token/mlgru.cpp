#include "layers/token/mlgru.h"

namespace mmfree {

MlGru::MlGru(const ParamStore& params, const std::string& prefix, const ModelConfig& config, int layer)
    : i_proj(params, prefix + "i_proj", config.precision_of(layer, "i_proj")),
      f_proj(params, prefix + "f_proj", config.precision_of(layer, "f_proj")),
      g_proj(params, prefix + "g_proj", config.precision_of(layer, "g_proj")),
      o_proj(params, prefix + "o_proj", config.precision_of(layer, "o_proj")),
      order(config.gate_order),
      eps(config.rms_norm_eps) {
  if (order != GateOrder::paper) gate_norm_weight = params[prefix + "g_norm.weight"];
}

Residual MlGru::operator()(const Residual& in, const Var& block_norm, const Var& bound, int64_t batch, Tensor* state,
                           Recompute recompute) const {
  const Keep keep = recompute == Recompute::selective ? Keep::source : Keep::all;
  const auto y = norm_linear(in.source(), block_norm, eps, BitLinear::kEps,
                             {i_proj.projection(), f_proj.projection(), g_proj.projection()}, keep);
  const Var &a = y[0], &z = y[1], &g = y[2];
  const Var s = mlgru_scan(z, a, bound, batch, state);
  const Source gate = order == GateOrder::reference ? Source::gate(g, s, gate_norm_weight, eps)
                                                    : Source::gate(s, g, gate_norm_weight, eps);
  return {in.value(y), norm_linear(gate, Var(), BitLinear::kEps, BitLinear::kEps, {o_proj.projection()}, keep)[0]};
}

}  // namespace mmfree
