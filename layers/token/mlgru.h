#pragma once
#include "layers/declaration.h"
#include "layers/residual.h"
#include "layers/step_context.h"

namespace mmfree {

/// Token mixer of the MatMul-free LM: four projections D → D around an elementwise recurrence.
///   a, z, g = i_proj(u), f_proj(u), g_proj(u) with u = RMSNorm(h; block_norm)
///   out = o_proj(gate(g, scan(z, a)))
/// State: the scan's [B, D], zeros at the start of a document. Source: Zhu et al. 2024 (arXiv:2406.02528).
struct MlGru {
  static constexpr TokenKind kind = TokenKind::mlgru;
  static constexpr bool has_heads = false, has_bound = true;
  BitLinear i_proj, f_proj, g_proj, o_proj;
  Var gate_norm;  ///< [D]; undefined with GateOrder::paper
  GateOrder order;
  double eps;

  explicit MlGru(const LayerConfig& c) : order(c.gate_order), eps(c.norm_eps) {}

  template <class Visitor>
  void visit(Visitor& v, const LayerConfig& c) {
    const MatrixSpec square{c.width, c.width, xavier_init(c.width, c.width)};
    v.projection("i_proj", i_proj, square, c);
    v.projection("f_proj", f_proj, square, c);
    v.projection("g_proj", g_proj, square, c);
    v.projection("o_proj", o_proj, square, c);
    if (order != GateOrder::paper) v.vector("g_norm.weight", gate_norm, {c.width}, 1);
  }

  /// Shapes of the state of `batch` sequences: the same after any number of tokens.
  static std::vector<Shape> state_shapes(const LayerConfig& c, int64_t batch) { return {{batch, c.width}}; }

  /// Multiplications and additions per token besides the projections': too few to count.
  static double mixing_flops(const LayerConfig&, int64_t) { return 0; }

  /// Returns the stream with this mixer's output as `pending`. `block_norm` [D] is the weight of the block's norm.
  Residual operator()(const Residual& in, const Var& block_norm, StepContext& step) const;
};

}  // namespace mmfree
