#pragma once
#include <vector>

#include "core/tensor.h"

namespace mmfree {

/// What a normalised branch is rounded to before its product.
enum class Rounding { int8, bf16, none };

/// One output of `norm_quant`: the row normalised with a weight of its own, then rounded.
struct NormBranch {
  Tensor weight;  ///< [D] T
  Rounding rounding = Rounding::int8;
  Tensor out;   ///< out: [N, D] i8 codes (int8), else [N, D] T
  Tensor step;  ///< out: [N] T, value ≈ code * step; undefined unless int8
};

/// RMSNorm, or block norm and one RMSNorm per branch, then rounding; x is read once.
///
///   u      = x                                              without `outer`
///   u_nk   = x_nk · r1_n · outer_k,   r1_n = 1 / sqrt(mean_k x_nk² + eps_outer)
///   v_nk   = u_nk · r2_n · weight_k,  r2_n = 1 / sqrt(mean_k u_nk² + eps_inner)    for each branch
///   int8:  m_n = max(max_k |v_nk|, 1e-5), code = round_half_away(v · (127 / m_n)), step_n = m_n / 127
///
/// @param x         [N, D] T (f32 | f64)
/// @param outer     [D] T, or undefined
/// @param eps_outer, eps_inner  added to the mean squares; dimensionless, > 0
/// @param branches  weights and roundings in, tensors `out` and `step` written
/// @param r1, r2    [N] T, out: kept for the backward pass (r1 is not written without `outer`)
/// @throws ShapeError, DTypeError. N == 0 is allowed. Outputs must not alias x.
/// Source: Ma et al. 2024 (arXiv:2402.17764).
void norm_quant(const Tensor& x, const Tensor& outer, double eps_outer, double eps_inner,
                std::vector<NormBranch>& branches, Tensor& r1, Tensor& r2);

/// One branch in the backward pass of `norm_quant`.
struct NormBranchGrad {
  Tensor weight;   ///< [D] T
  Tensor dout;     ///< [N, D] T: gradient of the branch, straight through the rounding
  Tensor dweight;  ///< [D] T, out; undefined: not wanted
  double beta_weight = 0;
};

/// Backward of `norm_quant`, rounding taken as identity (straight-through), scales not differentiated:
///   û = u r2,  s = Σ_b weight_b ⊙ dout_b,  du = r2 (s − û mean_k(û s)),  dweight_b = beta·dweight_b + Σ_n dout_b ⊙ û
///   x̂ = x r1,  g = du ⊙ outer,  dx = beta·dx + r1 (g − x̂ mean_k(x̂ g)),  douter = beta·douter + Σ_n du ⊙ x̂
/// Sums over rows are sums of fixed 64-row blocks in index order. `dx`, `douter` may be undefined: not wanted.
/// @throws ShapeError, DTypeError.
void norm_quant_backward(const Tensor& x, const Tensor& outer, const Tensor& r1, const Tensor& r2,
                         std::vector<NormBranchGrad>& branches, Tensor& dx, double beta_x, Tensor& douter,
                         double beta_outer);

struct NormQuantArgs {
  struct Branch {
    const void* weight;
    Rounding rounding;
    void* out;
    void* step;
  };
  const void *x, *outer;
  void *r1, *r2;
  int64_t n, d;
  double eps_outer, eps_inner;
  std::vector<Branch> branches;
  DType dtype;
};

struct NormQuantBackwardArgs {
  struct Branch {
    const void *weight, *dout;
    void* dweight;
    double beta;
  };
  const void *x, *outer, *r1, *r2;
  void *dx, *douter;
  double beta_x, beta_outer;
  int64_t n, d;
  std::vector<Branch> branches;
  DType dtype;
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
