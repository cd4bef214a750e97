#pragma once
#include <vector>

#include "autograd/tape.h"
#include "core/ops/head_loss.h"
#include "core/ops/norm_quant.h"

/// The differentiable operations. Each calls the op of the same name in core/ops, which documents formulas, shapes and
/// errors, and records its backward pass on the current Tape. Rows are tokens: N = B·T.
namespace mmfree {

/// a + b, the residual connection. [N, D] each; the sum has a's dtype.
Var add(const Var& a, const Var& b);

/// y_n = table[ids_n].  table [V, D], ids [N] i32 → [N, D] in the table's dtype, with the compute dtype `compute`. A
/// packed table (see is_packed) gives f32 and gets no gradient.
Var embedding(const Var& table, const Tensor& ids, DType compute);

/// The source of a norm's rows, as a RowSource of Vars.
struct Source {
  RowSource::Kind kind;
  Var a, b, weight;
  double eps = 0;
  Activation f = Activation::silu;

  static Source rows(const Var& x) { return {RowSource::rows, x, {}, {}}; }
  static Source sum(const Var& a, const Var& b) { return {RowSource::sum, a, b, {}}; }
  static Source gate(const Var& a, const Var& b, const Var& weight, double eps) {
    return {RowSource::gate, a, b, weight, eps};
  }
  /// Of two halves of x.
  static Source glu(const Var& x, Activation f) { return {RowSource::glu, x, {}, {}, 0, f}; }
  static Source glu(const Var& a, const Var& b, Activation f) { return {RowSource::glu, a, b, {}, 0, f}; }
  static Source activation(const Var& x, Activation f) { return {RowSource::activation, x, {}, {}, 0, f}; }
};

/// One output of norm_quant.
struct Branch {
  Var weight;  ///< [D]; undefined: no norm
  Rounding rounding;
};

/// Block norm (`outer`, may be undefined), then for each branch an RMSNorm, if it has a weight, and a rounding → one
/// Var [N, D] per branch: quantised for int8, values of A for bf16, values of P for none. The rounding's gradient is
/// straight-through. A `sum` source adds one more Var at the end: its value [N, D].
std::vector<Var> norm_quant(const Source& source, const Var& outer, double eps_outer, double eps_inner,
                            const std::vector<Branch>& branches);

/// RMSNorm: norm_quant with one branch, without block norm and rounding.
Var rmsnorm(const Var& x, const Var& weight, double eps);

/// y = x Wᵀ with the W of `matrix`. The gradient of W goes to `latent` [O, K], straight through the rounding; `latent`
/// may be undefined (exported models).
Var linear(const Var& x, const Var& latent, const WeightMatrix& matrix);

/// A projection, with a norm of its own if its branch has a weight.
struct Projection {
  Branch branch;
  Var latent;                  ///< [O, K], may be undefined
  const WeightMatrix* matrix;  ///< [O, K], outlives the tape
};

/// What `norm_linear` keeps for its backward pass.
enum class Keep {
  all,     ///< the source (of a sum its value) and the rounded activations
  source,  ///< the source (of a sum its value); the rounded activations are computed again from it
  terms,   ///< the same, of a sum its two terms: less memory if the second one's dtype is narrower than the value's
  codes,   ///< as terms, and codes of rounded activations, from which outputs are computed again when needed; the
           ///< gradient of the weights computes the rounded activations again
};

/// `norm_quant`, then `linear` of each branch → one Var [N, O] per projection. Projections without a norm of their own
/// and with the same rounding share a branch. A `sum` source adds one more Var at the end: its value [N, D].
std::vector<Var> norm_linear(const Source& source, const Var& outer, double eps_outer, double eps_inner,
                             const std::vector<Projection>& projections, Keep keep);

/// The lower bounds of all layers from lambda [L, D] → L Vars [D].
std::vector<Var> lower_bounds(const Var& lambda);

/// Recurrence over z, a [N, D] = [B·T, D]; gamma [D] or undefined → h [N, D]. `state` [B, D], if given, is the state
/// before the first step (undefined: zeros) and receives the state after the last step, in a tensor of its own.
/// `starts` [N] u8: 1 where a document starts, with a state of zeros before it; undefined: nowhere.
Var mlgru_scan(const Var& z, const Var& a, const Var& gamma, int64_t batch, Tensor* state = nullptr,
               const Tensor& starts = {});

/// Shape of an attention: H heads of queries and G of keys and values, each of width W; see core/ops/attention.h.
struct AttentionShape {
  int64_t heads, kv_heads, width;
  int64_t window;  ///< most tokens that a query sees; 0: all
  double theta;    ///< base of the rotary angles
};

/// Keys and values of earlier tokens. Without a window the tensors have room for C tokens, and the first `position` are
/// valid. With a window all C are valid, and the next call reads the last window − 1 of them.
struct KeyCache {
  Tensor keys, values;   ///< [B, C, G, W] A; keys are rotated. Undefined: none
  Tensor begins;         ///< [B] i32: where each sequence's document began; undefined: at 0
  int64_t position = 0;  ///< tokens so far
};

/// Attention over rotated queries and keys.  q [N, H·W], k, v [N, G·W] with N = B·T → [N, H·W]. `cache`, if given,
/// holds what came before the first token, and receives this call's keys and values. They are appended in place if
/// there is room and no other Tensor shares the cache; else the cache gets new tensors. No gradient flows into it.
/// `starts` as in mlgru_scan. Formulas, errors and sources: core/ops/rope.h, core/ops/attention.h.
Var attention(const Var& q, const Var& k, const Var& v, const AttentionShape& shape, int64_t batch,
              KeyCache* cache = nullptr, const Tensor& starts = {});

/// a, b [N, D], weight [D] or undefined → [N, D].
Var gate_norm(const Var& a, const Var& b, const Var& weight, double eps);

/// scale · Σ nll over the rows of q [N, K], an f64 tensor [1]. With a current Tape this call also computes the
/// gradients, one block of logits after the other, and adds that of `latent` to its slot. So backward must start from
/// this loss, with the weight 1.
Var head_loss(const Var& q, const Var& latent, const WeightMatrix& matrix, const Tensor& targets,
              const LossScale& scale);

}  // namespace mmfree
