#pragma once
#include "core/tensor.h"

namespace mmfree {

/// Lower bounds of the forget gates: p = softmax of lambda over layers (per channel), gamma_l = Σ_{1<=j<=l} p_j.
/// So gamma_0 = 0 and gamma_{L−1} = 1 − p_0 < 1.  lambda [L, D] P; gamma [L, D] P, out.
/// @throws ShapeError, DTypeError, DeviceError. Source: Qin et al. 2023 (arXiv:2311.04823).
void lower_bounds(const Tensor& lambda, Tensor& gamma);

/// dp_j = Σ_{l>=j} dgamma_l for j >= 1, dp_0 = 0;  dlambda_j = beta·dlambda_j + p_j (dp_j − Σ_k p_k dp_k).
/// dgamma, dlambda [L, D] P. @throws ShapeError, DTypeError, DeviceError
void lower_bounds_backward(const Tensor& lambda, const Tensor& dgamma, Tensor& dlambda, double beta);

struct LowerBoundsArgs {
  const void *lambda, *dgamma;
  void* out;  ///< gamma forward, dlambda backward
  int64_t l, d;
  double beta;
  DType dtype;
};

namespace cpu {
void lower_bounds(const LowerBoundsArgs&);
void lower_bounds_backward(const LowerBoundsArgs&);
}  // namespace cpu
namespace cuda {
void lower_bounds(const LowerBoundsArgs&);
void lower_bounds_backward(const LowerBoundsArgs&);
}  // namespace cuda

}  // namespace mmfree
