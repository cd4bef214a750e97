#pragma once
#include "core/ops/ternary.h"
#include "core/quant_tensor.h"

namespace mmfree {

/// The matrix of a projection, [O, K]: ternary codes with a scale, or plain values. With plain f32 values under bf16
/// activations the product is computed in f32 (see `linear`).
struct WeightMatrix {
  TernaryTensor ternary;
  Tensor plain;                           ///< f32 | f64 | bf16; undefined when ternary
  Products backward = Products::compute;  ///< of its backward pass; int8 only where it is ternary

  bool is_ternary() const { return !plain.defined(); }
  int64_t rows() const { return is_ternary() ? ternary.codes.dim(0) : plain.dim(0); }
  int64_t cols() const { return is_ternary() ? ternary.cols : plain.dim(1); }
};

/// y = x Wᵀ.  x [N, K]: int8 codes with row scales if W is ternary, else plain values of W's dtype; y [N, O] in x's
/// compute dtype, out. If x and W are f32 and y is bf16, the product is computed in f32 and rounded once. The bits of a
/// row of y do not depend on N or on the other rows. @throws ShapeError, DTypeError
void linear(const QuantTensor& x, const WeightMatrix& w, Tensor& y);

/// dx = beta·dx + dy W with the quantised W, in the products `w.backward`. dy needs rows only for products in int8 on a
/// GPU, and has them made if it lacks them; for all other products it needs values. The activation quantiser is
/// differentiated as the identity (straight-through estimator, STE).  dy [N, O], dx [N, K] in dy's dtype. If dy is bf16
/// and W f32, the product is computed in f32. `dense` comes from linear_dx_weights for this W and dtype of dy, where
/// one W serves several calls; undefined: made for this call.
/// @throws ShapeError, DTypeError
void linear_dx(const Gradient& dy, const WeightMatrix& w, Tensor& dx, double beta, const Tensor& dense = Tensor());
/// Undefined if linear_dx for a dy of dtype t needs nothing like it.
Tensor linear_dx_weights(const WeightMatrix& w, DType t);

/// dw = beta·dw + dyᵀ x with the quantised x, in the given products, and the STE for the weight quantiser.  dy [N, O],
/// dw [O, K] P. If dy is bf16 and x f32, the product is computed in f32. @throws ShapeError, DTypeError
void linear_dw(const Gradient& dy, const QuantTensor& x, Tensor& dw, double beta,
               Products products = Products::compute);

}  // namespace mmfree
