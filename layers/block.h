#pragma once
#include "layers/channel/glu.h"
#include "layers/token/mlgru.h"

namespace mmfree {

/// Pre-norm residual block: h' = h + mixer(norm(h)), y = h' + channel(norm(h')).  h, y [B·T, D]. Norms and additions
/// are fused into the mixers' first norm_linear, so the last addition is the next block's.
struct Block {
  Var attn_norm, mlp_norm;  ///< [D]
  MlGru mixer;
  GluMixer channel;

  Block(const ParamStore& params, const ModelConfig& config, int layer)
      : Block(params, concat("model.layers.", layer, '.'), config, layer) {}

  Residual operator()(const Residual& in, const Var& bound, int64_t batch, Tensor* state, Recompute keep) const {
    if (keep != Recompute::full) return channel(mixer(in, attn_norm, bound, batch, state, keep), mlp_norm, keep);
    const auto out = recompute("block", {in.sum(), bound}, [block = this, batch](const std::vector<Var>& inputs) {
      const Residual y = (*block)({inputs[0], Var()}, inputs[1], batch, nullptr, Recompute::none);
      return std::vector<Var>{y.h, y.pending};
    });
    return {out[0], out[1]};
  }

 private:
  Block(const ParamStore& params, const std::string& prefix, const ModelConfig& config, int layer)
      : attn_norm(params[prefix + "attn_norm.weight"]),
        mlp_norm(params[prefix + "mlp_norm.weight"]),
        mixer(params, prefix + "attn.", config, layer),
        channel(params, prefix + "mlp.", config, layer) {}
};

}  // namespace mmfree
