#pragma once
#include <vector>

#include "core/activation.h"
#include "core/quant_tensor.h"

namespace mmfree {

/// How a branch is rounded before its product.
enum class Rounding { int8, bf16, none };

/// The source of the rows x [N, D] that are normalised. The norm computes x while it reads, so x is not stored first.
struct RowSource {
  enum Kind : int {
    rows,  ///< x = a
    sum,   ///< x = a + b, the residual connection; also written to `x`
    gate,  ///< x = (a · r0 ⊙ weight) ⊙ SiLU(b), r0_n = 1 / sqrt(mean_k a_nk² + eps); no weight: x = a ⊙ σ(b)
    glu,   ///< x = f(a) ⊙ b; without b it is the right half of a: x = f(a[:, :D]) ⊙ a[:, D:]; Shazeer 2020
           ///< (arXiv:2002.05202)
    activation,  ///< x = f(a)
  };
  Kind kind = rows;
  Tensor a;                         ///< rows, sum: [N, D] A or P; others: [N, D] A; glu without b: [N, 2D] A
  Tensor b;                         ///< sum, gate: [N, D] A; glu: the same, or undefined
  Tensor weight;                    ///< gate: [D] P, or undefined
  double eps = 0;                   ///< gate
  Activation f = Activation::silu;  ///< glu, activation

  int64_t rows_count() const { return a.dim(0); }
  bool halved() const { return kind == glu && !b.defined(); }
  int64_t width() const { return halved() ? a.dim(1) / 2 : a.dim(1); }
};

/// One output of `norm_quant`: the rows u, normalised if the branch has a weight, then rounded.
struct NormBranch {
  Tensor weight;  ///< [D] P; undefined: no norm, v = u
  Rounding rounding = Rounding::int8;
  Tensor out;   ///< out [N, D]: i8 codes; or the rounded value, A for int8 (code · step) and bf16, P for none
  Tensor step;  ///< out [N] P, value ≈ code · step; undefined unless `out` holds codes
};
inline constexpr size_t kMaxNormBranches = 4;

/// Reciprocal root mean squares (rstd) of the rows, for the backward pass: [N] P each, undefined where there is no such
/// norm.
struct NormStats {
  Tensor r0;  ///< of the gate's a
  Tensor r1;  ///< of x, with `outer`
  Tensor r2;  ///< of u, if a branch has a weight
};

/// Allocates the stats that norm_quant writes for these arguments.
NormStats make_norm_stats(const RowSource& source, const Tensor& outer, const std::vector<NormBranch>& branches);

/// The block norm (`outer`), then for each branch an RMSNorm and a rounding. Both norms are optional. The source is
/// read once.
///
///   u      = x                                              without `outer`
///   u_nk   = x_nk · r1_n · outer_k,   r1_n = 1 / sqrt(mean_k x_nk² + eps_outer)
///   v_nk   = u_nk · r2_n · weight_k,  r2_n = 1 / sqrt(mean_k u_nk² + eps_inner)    for a branch with a weight
///   v      = u                                                                     for one without
///   int8:  m_n = max(max_k |v_nk|, 1e-5), code = round_half_away(v · (127 / m_n)), step_n = m_n / 127
///
/// @param source    what x is
/// @param outer     [D] P, weight of the block norm; undefined: no block norm
/// @param eps_outer, eps_inner  added to the mean squares, > 0
/// @param branches  1 to kMaxNormBranches; weights and roundings in, tensors `out` and `step` written
/// @param stats     out
/// @param x         out, source `sum` only: [N, D] in a's dtype; may be undefined: not wanted
/// @throws ShapeError, DTypeError, DeviceError; Error for an unknown kind. N == 0 is allowed. Outputs must not alias
/// inputs.
/// Source: Ma et al. 2024 (arXiv:2402.17764).
void norm_quant(const RowSource& source, const Tensor& outer, double eps_outer, double eps_inner,
                std::vector<NormBranch>& branches, NormStats& stats, Tensor& x);

/// One branch in the backward pass of `norm_quant`.
struct NormBranchGrad {
  Tensor weight;   ///< as in the forward call
  Tensor dout;     ///< [N, D] A: gradient of the branch's rounded value
  Tensor dweight;  ///< [D] P, out; undefined: not wanted
  double beta_weight = 0;
  Rounding rounding = Rounding::int8;
  /// out [N, D] A, for Rounding::none P: the branch's rounded value (int8: code · step), computed again for the
  /// gradient of the projection's weight, with the bits of norm_quant. May be `dout` itself if the dtypes agree;
  /// undefined: not wanted.
  Tensor u = {};
  Tensor step = {};  ///< [N] P, out, only int8: the steps of the codes, and `u` is those codes, [N, D] i8; or undefined
};

/// Gradients of a RowSource; undefined: not wanted.
///
/// On a GPU the gradient of a can also be had in 8 bits by rows, beside the values or instead of them: `rows` gets what
/// `gradient_rows` makes of the values in A. Not of a glu with two parts.
struct RowSourceGrad {
  Tensor incoming;  ///< rows, sum: [N, D] A, added to the result; may be `a` itself or undefined
  Tensor a;         ///< out, A: gradient of a (rows, sum: of x, and so of a and of b); shape of the source's a
  Tensor b;         ///< out, gate and glu, if the source has a b: [N, D] A
  Tensor weight;    ///< out, gate: [D] P, = beta_weight · weight + …
  double beta_weight = 0;
  QuantTensor rows;  ///< out: gradient of a, i8 of its shape and [N] P, see above
};

/// Backward of `norm_quant`. Rounding is differentiated as the identity (straight-through estimator). b runs over the
/// branches with a weight, c over those without:
///   û = u r2,  s = Σ_b weight_b ⊙ dout_b,  du = r2 (s − û mean_k(û s)) + Σ_c dout_c
///   dweight_b = beta·dweight_b + Σ_n dout_b ⊙ û
///   x̂ = x r1,  g = du ⊙ outer,  dx = r1 (g − x̂ mean_k(x̂ g)),  douter = beta·douter + Σ_n du ⊙ x̂
/// and from dx the exact derivative of the source. Sums over rows are taken in a fixed order.
///
/// @param source  as in the forward call; for a sum whose x was stored, `rows` of that x is the same
/// @param douter  [D] P, out; may be undefined: not wanted
/// @throws ShapeError, DTypeError, DeviceError; Error for an unknown kind
void norm_quant_backward(const RowSource& source, const Tensor& outer, double eps_inner, const NormStats& stats,
                         std::vector<NormBranchGrad>& branches, RowSourceGrad& grad, Tensor& douter, double beta_outer);

/// A RowSource for kernels.
struct RowSourceArgs {
  RowSource::Kind kind;
  Activation f;
  const void *a, *b, *weight;  ///< b of a halved glu: the right half of a
  int64_t stride;              ///< elements from a row of a, and for gate and glu of b, to the next
  double eps;
  DType type_a;  ///< dtype of a; b has the call's A
};

/// A NormBranch or a NormBranchGrad for kernels.
struct NormBranchArgs {
  const void* weight;  ///< null: no norm
  Rounding rounding;
  void* out;   ///< codes or values; backward: NormBranchGrad::u, or null
  void* step;  ///< null: `out` holds values
  const void* dout;
  void* dweight;
  double beta;
};

/// Arguments of both directions.
struct NormArgs {
  RowSourceArgs source;
  const void* outer;
  double eps_outer, eps_inner;
  int64_t n, d;
  int count;
  NormBranchArgs branches[kMaxNormBranches];
  DType dtype;  ///< A
};

struct NormQuantArgs : NormArgs {
  void *r0, *r1, *r2, *x;  ///< null: none; r2: no branch has a weight
};

struct NormQuantBackwardArgs : NormArgs {
  const void *r0, *r1, *r2, *incoming;  ///< null: none; r2: no branch has a weight
  void *da, *db, *dweight, *douter;
  int8_t* rows;     ///< null: not wanted; of a halved glu both halves, 2 d columns
  void* row_steps;  ///< of `rows`
  double beta_weight, beta_outer;
};

namespace cpu {
void norm_quant(const NormQuantArgs&);
void norm_quant_backward(const NormQuantBackwardArgs&);
}  // namespace cpu
namespace cuda {
void norm_quant(const NormQuantArgs&);
void norm_quant_backward(const NormQuantBackwardArgs&);
}  // namespace cuda

}  // namespace mmfree
