#pragma once
#include "layers/glu_mixer.h"
#include "layers/mlgru.h"

namespace mmfree {

/// Pre-norm residual block: h' = h + mixer(norm(h)), y = h' + channel(norm(h')).  h, y [B·T, D]. The norms are fused
/// into the mixers' first norm_quant.
struct Block {
  Var attn_norm, mlp_norm;  ///< [D]
  MlGru mixer;
  GluMixer channel;

  Block(const ParamStore& params, const ModelConfig& config, int layer)
      : Block(params, concat("model.layers.", layer, '.'), config, layer) {}

  Var operator()(const Var& h, const Var& bound, int64_t batch, Tensor* state) const {
    const Var mixed = add(h, mixer(h, attn_norm, bound, batch, state));
    return add(mixed, channel(mixed, mlp_norm));
  }

 private:
  Block(const ParamStore& params, const std::string& prefix, const ModelConfig& config, int layer)
      : attn_norm(params[prefix + "attn_norm.weight"]),
        mlp_norm(params[prefix + "mlp_norm.weight"]),
        mixer(params, prefix + "attn.", config, layer),
        channel(params, prefix + "mlp.", config, layer) {}
};

}  // namespace mmfree
