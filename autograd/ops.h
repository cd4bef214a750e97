#pragma once
#include <vector>

#include "autograd/tape.h"
#include "core/ops/head_loss.h"
#include "core/ops/norm_quant.h"

/// The differentiable operations. Each computes with the op of the same name in core/ops (formulas, shapes and errors
/// are documented there) and records its backward pass on the live Tape. Rows are tokens: N = B·T.
namespace mmfree {

/// a + b, the residual connection. [N, D] each.
Var add(const Var& a, const Var& b);

/// y_n = table[ids_n].  table [V, D], ids [N] i32 → [N, D]. The table may be f32, f64 (differentiable).
Var embedding(const Var& table, const Tensor& ids);

/// One wanted output of norm_quant.
struct Branch {
  Var weight;  ///< [D]
  Rounding rounding;
};

/// Block norm (`outer`, may be undefined) and one RMSNorm per branch, rounded: x [N, D] → one Var [N, D] per branch,
/// quantised where the branch says int8. The rounding is straight-through.
std::vector<Var> norm_quant(const Var& x, const Var& outer, double eps_outer, double eps_inner,
                            const std::vector<Branch>& branches);

/// RMSNorm without rounding: the single-branch, single-norm norm_quant.
Var rmsnorm(const Var& x, const Var& weight, double eps);

/// y = x Wᵀ with W as `matrix` holds it; the gradient of W goes straight through its rounding to `latent` [O, K], which
/// may be undefined (exported models).
Var linear(const Var& x, const Var& latent, const WeightMatrix& matrix);

/// Bounds [L, D] of all layers from lambda [L, D]; element l of the result is [D].
std::vector<Var> lower_bounds(const Var& lambda);

/// Recurrence over z, a [N, D] = [B·T, D]; gamma [D] or undefined; h0 [B, D] or undefined → h [N, D].
Var mlgru_scan(const Var& z, const Var& a, const Var& gamma, const Tensor& h0, int64_t batch);

/// a, b [N, D], weight [D] or undefined → [N, D].
Var gate_norm(const Var& a, const Var& b, const Var& weight, double eps);

/// [N, 2I] → [N, I].
Var swiglu(const Var& x);

/// scale · Σ nll over the rows of q [N, K], a tensor [1]. With a live Tape the gradients are computed right here, block
/// of logits by block, and that of `latent` is added to its slot at once; so backward must start from this loss.
Var head_loss(const Var& q, const Var& latent, const WeightMatrix& matrix, const Tensor& targets, double scale);

}  // namespace mmfree
