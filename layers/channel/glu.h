#pragma once
#include "layers/bitlinear.h"
#include "layers/residual.h"

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

  /// The stream after this mixer, its own output pending.
  Residual operator()(const Residual& in, const Var& block_norm, Recompute recompute) const {
    const Keep keep = recompute == Recompute::selective ? Keep::nothing : Keep::all;
    const auto y = norm_linear(in.source(), block_norm, eps, BitLinear::kEps, {gate_proj.projection()}, keep);
    const Keep keep_inner = recompute == Recompute::selective ? Keep::source : Keep::all;
    const Var out = norm_linear(Source::glu(y[0], Activation::silu), Var(), BitLinear::kEps, BitLinear::kEps, {down_proj.projection()},
                                keep_inner)[0];
    return {in.value(y), out};
  }
};

}  // namespace mmfree
