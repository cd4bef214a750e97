#pragma once
#include "layers/declaration.h"
#include "layers/residual.h"
#include "layers/step_context.h"

namespace mmfree {

/// Channel mixer of two matrices: down_proj(act(up_proj(RMSNorm(h; block_norm)))), D → I → D; with sub_norm
/// down_proj(RMSNorm(act(…); sub_norm)).
struct Mlp {
  static constexpr ChannelKind kind = ChannelKind::mlp;
  BitLinear up_proj, down_proj;
  Var sub_norm;  ///< [I]; undefined: none
  Activation activation;
  double eps;

  explicit Mlp(const LayerConfig& c) : activation(c.activation), eps(c.norm_eps) {}

  template <class Visitor>
  void visit(Visitor& v, const LayerConfig& c) {
    v.projection("up_proj", up_proj, {c.inner, c.width, normal_init(c.std)}, c);
    v.projection("down_proj", down_proj, {c.width, c.inner, normal_init(c.std / std::sqrt(2.0 * double(c.depth)))}, c);
    if (c.sub_norm) v.vector("sub_norm.weight", sub_norm, {c.inner}, 1);
  }

  /// Returns the stream with this mixer's output as `pending`. `block_norm` [D] is the weight of the block's norm.
  Residual operator()(const Residual& in, const Var& block_norm, StepContext& step) const {
    const auto y =
        norm_linear(in.source(), block_norm, eps, BitLinear::kEps, {up_proj.projection()}, step.keep_output());
    const Var out = norm_linear(Source::activation(y[0], activation), sub_norm, eps, BitLinear::kEps,
                                {down_proj.projection()}, step.keep_rounded())[0];
    return {in.value(y), out};
  }
};

}  // namespace mmfree
