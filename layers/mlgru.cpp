#include "layers/mlgru.h"

#include <cstring>

namespace mmfree {
namespace {

/// The rows of the last time step: h [B·T, D] → [B, D].
Tensor last_step(const Tensor& h, int64_t batch) {
  const int64_t steps = h.dim(0) / batch;
  Tensor last({batch, h.dim(1)}, h.dtype());
  for (int64_t b = 0; b < batch; ++b) {
    const Tensor row = h.slice((b + 1) * steps - 1, (b + 1) * steps);
    std::memcpy(last.slice(b, b + 1).raw_mut(), row.raw(), size_t(row.bytes()));
  }
  return last;
}

}  // namespace

MlGru::MlGru(const ParamStore& params, const std::string& prefix, const ModelConfig& config, int layer)
    : i_proj(params, prefix + "i_proj", config.precision_of(layer, "i_proj")),
      f_proj(params, prefix + "f_proj", config.precision_of(layer, "f_proj")),
      g_proj(params, prefix + "g_proj", config.precision_of(layer, "g_proj")),
      o_proj(params, prefix + "o_proj", config.precision_of(layer, "o_proj")),
      order(config.gate_order),
      eps(config.rms_norm_eps) {
  if (order != GateOrder::paper) gate_norm_weight = params[prefix + "g_norm.weight"];
}

Var MlGru::operator()(const Var& h, const Var& block_norm, const Var& bound, int64_t batch, Tensor* state) const {
  const auto u = norm_quant(h, block_norm, eps, BitLinear::kEps, {i_proj.branch(), f_proj.branch(), g_proj.branch()});
  const Var a = i_proj(u[0]), z = f_proj(u[1]), g = g_proj(u[2]);
  const Var s = mlgru_scan(z, a, bound, state ? *state : Tensor(), batch);
  if (state) *state = last_step(s.value(), batch);
  const Var m =
      order == GateOrder::reference ? gate_norm(g, s, gate_norm_weight, eps) : gate_norm(s, g, gate_norm_weight, eps);
  return o_proj.from_plain(m);
}

}  // namespace mmfree
