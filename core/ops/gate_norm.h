#pragma once
#include "core/tensor.h"

namespace mmfree {

/// Output gate of the MLGRU. With a norm weight:  y = (a · r ⊙ weight) ⊙ SiLU(b),  r_n = 1 / sqrt(mean_k a_nk² + eps);
/// without:  y = a ⊙ σ(b).  The three published orders are calls of this op:
///   reference: a = gate projection, b = state     fixed: a = state, b = gate projection
///   paper: a = state, b = gate projection, no weight
///
/// @param a, b    [N, D] A
/// @param weight  [D] P, or undefined
/// @param y       [N, D] A, out
/// @param r       [N] P, out: rstd of a's rows, for the backward pass; not written without a weight
/// @throws ShapeError, DTypeError, DeviceError. y must not alias a or b.
void gate_norm(const Tensor& a, const Tensor& b, const Tensor& weight, double eps, Tensor& y, Tensor& r);

/// Backward: the exact derivative. da = beta_a·da + …, db = beta_b·db + …, dweight = beta_weight·dweight + …; each may
/// be undefined: not wanted. dy, da, db [N, D] A, dweight [D] P. @throws ShapeError, DTypeError, DeviceError
void gate_norm_backward(const Tensor& a, const Tensor& b, const Tensor& weight, const Tensor& r, const Tensor& dy,
                        Tensor& da, double beta_a, Tensor& db, double beta_b, Tensor& dweight, double beta_weight);

struct GateNormArgs {
  const void *a, *b, *weight;
  void *y, *r;
  int64_t n, d;
  double eps;
  DType dtype;
};

struct GateNormBackwardArgs {
  const void *a, *b, *weight, *r, *dy;
  void *da, *db, *dweight;
  double beta_a, beta_b, beta_weight;
  int64_t n, d;
  DType dtype;
};

namespace cpu {
void gate_norm(const GateNormArgs&);
void gate_norm_backward(const GateNormBackwardArgs&);
}  // namespace cpu
namespace cuda {
void gate_norm(const GateNormArgs&);
void gate_norm_backward(const GateNormBackwardArgs&);
}  // namespace cuda

}  // namespace mmfree
