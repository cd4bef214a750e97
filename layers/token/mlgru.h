#pragma once
#include "layers/bitlinear.h"
#include "layers/residual.h"

namespace mmfree {

/// Token mixer of the MatMul-free LM: four projections D → D around an elementwise recurrence.
///   a, z, g = i_proj(u), f_proj(u), g_proj(u) with u = RMSNorm(h; block_norm)
///   out = o_proj(gate(g, scan(z, a)))
struct MlGru {
  BitLinear i_proj, f_proj, g_proj, o_proj;
  Var gate_norm_weight;  ///< [D]; undefined with GateOrder::paper
  GateOrder order;
  double eps;

  MlGru(const ParamStore& params, const std::string& prefix, const ModelConfig& config, int layer);
  /// The stream after this mixer, its own output pending. `block_norm` [D] is the block's norm; bound [D] the layer's
  /// forget-gate bound, may be undefined; `state` is null, or the layer's entry of a DecodeState [B, D]: read if
  /// defined, and left as the state after the last step.
  Residual operator()(const Residual& in, const Var& block_norm, const Var& bound, int64_t batch, Tensor* state,
                      Recompute recompute) const;
};

}  // namespace mmfree
