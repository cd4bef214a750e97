#pragma once
#include <algorithm>

#include "layers/declaration.h"
#include "layers/residual.h"
#include "layers/step_context.h"

namespace mmfree {

/// Token mixer of Transformers: causal softmax attention with rotary positions and grouped heads.
///   q, k, v = q_proj(u), k_proj(u), v_proj(u) with u = RMSNorm(h; block_norm)
///   out = o_proj(attention(rope(q), rope(k), v)), with sub_norm o_proj(RMSNorm(attention(…); sub_norm))
/// State: rotated keys and values of earlier tokens, with a sliding window at least as many as it sees; grows with the
/// sequence. Source: Vaswani et al. 2017 (arXiv:1706.03762), Touvron et al. 2023 (arXiv:2302.13971); the sub-norm:
/// Wang et al. 2022 (arXiv:2210.06423), as in BitNet b1.58 2B4T (arXiv:2504.12285).
struct Attention {
  static constexpr TokenKind kind = TokenKind::attention;
  static constexpr bool has_heads = true, has_bound = false;
  BitLinear q_proj, k_proj, v_proj, o_proj;
  Var sub_norm;  ///< [H·W]; undefined: none
  AttentionShape shape;
  double eps;

  explicit Attention(const LayerConfig& c)
      : shape{c.heads, c.groups, c.head_dim, c.sliding_window, c.rope_theta}, eps(c.norm_eps) {}

  template <class Visitor>
  void visit(Visitor& v, const LayerConfig& c) {
    const int64_t inner = c.heads * c.head_dim, keys = c.groups * c.head_dim;
    v.projection("q_proj", q_proj, {inner, c.width, normal_init(c.std)}, c);
    v.projection("k_proj", k_proj, {keys, c.width, normal_init(c.std)}, c);
    v.projection("v_proj", v_proj, {keys, c.width, normal_init(c.std)}, c);
    v.projection("o_proj", o_proj, {c.width, inner, normal_init(c.std / std::sqrt(2.0 * double(c.depth)))}, c);
    if (c.sub_norm) v.vector("sub_norm.weight", sub_norm, {inner}, 1);
  }

  /// No tensors: the state grows from nothing.
  static std::vector<Shape> state_shapes(const LayerConfig&, int64_t) { return {}; }

  /// Multiplications and additions per token besides the projections', the average over a sequence of `steps`.
  static double mixing_flops(const LayerConfig& c, int64_t steps) {
    const double most = c.sliding_window ? double(std::min(c.sliding_window, steps)) : double(steps);
    const double seen = most - most * (most - 1) / (2 * double(steps));  // the first tokens see fewer
    return 4 * seen * double(c.heads * c.head_dim);
  }

  /// Returns the stream with this mixer's output as `pending`. `block_norm` [D] is the weight of the block's norm.
  Residual operator()(const Residual& in, const Var& block_norm, StepContext& step) const;
};

}  // namespace mmfree
