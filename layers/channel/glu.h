#pragma once
#include "layers/declaration.h"
#include "layers/residual.h"
#include "layers/step_context.h"

namespace mmfree {

/// Gated channel mixer: down_proj(act(gate) ⊙ up), with sub_norm down_proj(RMSNorm(act(gate) ⊙ up; sub_norm)).
///   fused_gate: gate, up = y[:I], y[I:] with y = gate_proj(u), one D → 2I projection
///   else        gate, up = gate_proj(u), up_proj(u)                                      u = RMSNorm(h; block_norm)
/// With act = SiLU it is SwiGLU, with GELU GEGLU, with the identity a bilinear layer. Source: Shazeer 2020
/// (arXiv:2002.05202).
struct Glu {
  static constexpr ChannelKind kind = ChannelKind::glu;
  BitLinear gate_proj, up_proj, down_proj;  ///< up_proj: unless `fused`
  Var sub_norm;                             ///< [I]; undefined: none
  Activation activation;
  bool fused;
  double eps;

  explicit Glu(const LayerConfig& c) : activation(c.activation), fused(c.fused_gate), eps(c.norm_eps) {}

  template <class Visitor>
  void visit(Visitor& v, const LayerConfig& c) {
    v.projection("gate_proj", gate_proj, {fused ? 2 * c.inner : c.inner, c.width, normal_init(c.std)}, c);
    if (!fused) v.projection("up_proj", up_proj, {c.inner, c.width, normal_init(c.std)}, c);
    v.projection("down_proj", down_proj, {c.width, c.inner, normal_init(c.std / std::sqrt(2.0 * double(c.depth)))}, c);
    if (c.sub_norm) v.vector("sub_norm.weight", sub_norm, {c.inner}, 1);
  }

  /// Returns the stream with this mixer's output as `pending`. `block_norm` [D] is the weight of the block's norm.
  Residual operator()(const Residual& in, const Var& block_norm, StepContext& step) const {
    std::vector<Projection> projections{gate_proj.projection()};
    if (!fused) projections.push_back(up_proj.projection());
    const auto y = norm_linear(in.source(), block_norm, eps, BitLinear::kEps, projections, step.keep_output());
    const Source gated = fused ? Source::glu(y[0], activation) : Source::glu(y[0], y[1], activation);
    const Var out =
        norm_linear(gated, sub_norm, eps, BitLinear::kEps, {down_proj.projection()}, step.keep_rounded())[0];
    return {in.value(y), out};
  }
};

}  // namespace mmfree
