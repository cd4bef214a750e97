#pragma once
#include "layers/declaration.h"
#include "layers/residual.h"
#include "layers/step_context.h"

namespace mmfree {

/// Gated channel mixer: down_proj(act(y[:I]) ⊙ y[I:]) with y = gate_proj(RMSNorm(h; block_norm)). gate_proj is one
/// D → 2I projection: gate rows first, then up rows. With act = SiLU it is SwiGLU, with GELU GEGLU, with the identity a
/// bilinear layer. Source: Shazeer 2020 (arXiv:2002.05202).
struct Glu {
  static constexpr ChannelKind kind = ChannelKind::glu;
  BitLinear gate_proj, down_proj;
  Activation activation;
  double eps;

  explicit Glu(const LayerConfig& c) : activation(c.activation), eps(c.norm_eps) {}

  template <class Visitor>
  void visit(Visitor& v, const LayerConfig& c) {
    v.projection("gate_proj", gate_proj, {2 * c.inner, c.width, normal_init(c.std)}, c);
    v.projection("down_proj", down_proj, {c.width, c.inner, normal_init(c.std / std::sqrt(2.0 * double(c.depth)))}, c);
  }

  /// Returns the stream with this mixer's output as `pending`. `block_norm` [D] is the weight of the block's norm.
  Residual operator()(const Residual& in, const Var& block_norm, StepContext& step) const {
    const auto y =
        norm_linear(in.source(), block_norm, eps, BitLinear::kEps, {gate_proj.projection()}, step.keep_output());
    const Var out = norm_linear(Source::glu(y[0], activation), Var(), BitLinear::kEps, BitLinear::kEps,
                                {down_proj.projection()}, step.keep_rounded())[0];
    return {in.value(y), out};
  }
};

}  // namespace mmfree
