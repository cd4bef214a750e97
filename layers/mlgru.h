#pragma once
#include "layers/bitlinear.h"

namespace mmfree {

/// Token mixer of the MatMul-free LM: four projections D → D around an elementwise recurrence.
///   a, z, g = i_proj(u), f_proj(u), g_proj(u) with u = RMSNorm(h; block_norm)
///   out = o_proj(gate(g, scan(z, a)))
struct MlGru {
  BitLinear i_proj, f_proj, g_proj, o_proj;
  Var gate_norm_weight;  ///< [D]; undefined in gate order `paper`
  GateOrder order;
  double eps;

  MlGru(const ParamStore& params, const std::string& prefix, const ModelConfig& config, int layer);
  /// h [B·T, D] un-normalised residual stream; block_norm [D]; bound [D] or undefined in layer 0. If `state` is given
  /// it is read as the state before the first token (undefined: zeros) and replaced by the state after the last.
  Var operator()(const Var& h, const Var& block_norm, const Var& bound, int64_t batch, Tensor* state) const;
};

}  // namespace mmfree
