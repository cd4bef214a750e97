#pragma once
#include <vector>

#include "autograd/tape.h"
#include "core/ops/head_loss.h"
#include "core/ops/norm_quant.h"

/// The differentiable operations. Each computes with the op of the same name in core/ops (formulas, shapes and errors
/// are documented there) and records its backward pass on the live Tape. Rows are tokens: N = B·T.
namespace mmfree {

/// a + b, the residual connection. [N, D] each; the sum has a's dtype.
Var add(const Var& a, const Var& b);

/// y_n = table[ids_n].  table [V, D], ids [N] i32 → [N, D] in the table's dtype; what follows computes in `compute`.
Var embedding(const Var& table, const Tensor& ids, DType compute);

/// Where the rows of a norm come from: see RowSource.
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
  static Source glu(const Var& x, Activation f) { return {RowSource::glu, x, {}, {}, 0, f}; }
  static Source activation(const Var& x, Activation f) { return {RowSource::activation, x, {}, {}, 0, f}; }
};

/// One wanted output of norm_quant.
struct Branch {
  Var weight;  ///< [D]; undefined: no norm
  Rounding rounding;
};

/// Block norm (`outer`, may be undefined) and for each branch an RMSNorm, if it has a weight, and rounding → one Var
/// [N, D] per branch, quantised where the branch says int8, of dtype P where it says none. The rounding is
/// straight-through. Of a sum, its value [N, D] is one Var more.
std::vector<Var> norm_quant(const Source& source, const Var& outer, double eps_outer, double eps_inner,
                            const std::vector<Branch>& branches);

/// RMSNorm without rounding: the single-branch, single-norm norm_quant.
Var rmsnorm(const Var& x, const Var& weight, double eps);

/// y = x Wᵀ with W as `matrix` holds it; the gradient of W goes straight through its rounding to `latent` [O, K], which
/// may be undefined (exported models).
Var linear(const Var& x, const Var& latent, const WeightMatrix& matrix);

/// A projection, with a norm of its own if its branch has a weight.
struct Projection {
  Branch branch;
  Var latent;                  ///< [O, K], may be undefined
  const WeightMatrix* matrix;  ///< [O, K], outlives the tape
};

/// What the backward pass of `norm_linear` keeps besides its source.
enum class Keep {
  all,      ///< the rounded activations too
  source,   ///< nothing: the rounded activations are made again from the source
  nothing,  ///< as `source`, of a sum its terms, and the outputs are made again where a later backward pass needs them
};

/// `linear` of each branch of `norm_quant`: one Var [N, O] per projection; of a sum, its value [N, D] is one Var more.
std::vector<Var> norm_linear(const Source& source, const Var& outer, double eps_outer, double eps_inner,
                             const std::vector<Projection>& projections, Keep keep);

/// Bounds [L, D] of all layers from lambda [L, D]; element l of the result is [D].
std::vector<Var> lower_bounds(const Var& lambda);

/// Recurrence over z, a [N, D] = [B·T, D]; gamma [D] or undefined → h [N, D]. `state` [B, D], if given, is the state to
/// start from (undefined: zeros) and becomes the state after the last step.
Var mlgru_scan(const Var& z, const Var& a, const Var& gamma, int64_t batch, Tensor* state = nullptr);

/// a, b [N, D], weight [D] or undefined → [N, D].
Var gate_norm(const Var& a, const Var& b, const Var& weight, double eps);

/// scale · Σ nll over the rows of q [N, K], an f64 tensor [1]. With a live Tape the gradients are computed right here,
/// block of logits by block, and that of `latent` is added to its slot at once; so backward must start from this loss
/// with the weight 1.
Var head_loss(const Var& q, const Var& latent, const WeightMatrix& matrix, const Tensor& targets,
              const LossScale& scale);

}  // namespace mmfree
