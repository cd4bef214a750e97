#pragma once
#include "layers/bitlinear.h"

namespace mmfree {

/// Channel mixer: down_proj(SiLU(y[:I]) ⊙ y[I:]) with y = gate_proj(RMSNorm(h; block_norm)).
/// gate_proj is one D → 2I projection: gate rows first, then up rows.
struct GluMixer {
  BitLinear gate_proj, down_proj;
  double eps;

  GluMixer(const ParamStore& params, const std::string& prefix, const ModelConfig& config, int layer)
      : gate_proj(params, prefix + "gate_proj", config.precision_of(layer, "gate_proj")),
        down_proj(params, prefix + "down_proj", config.precision_of(layer, "down_proj")),
        eps(config.rms_norm_eps) {}

  Var operator()(const Var& h, const Var& block_norm) const {
    return down_proj.from_plain(
        swiglu(gate_proj(norm_quant(h, block_norm, eps, BitLinear::kEps, {gate_proj.branch()})[0])));
  }
};

}  // namespace mmfree
