#pragma once
#include "core/ops/ternary.h"
#include "core/quant_tensor.h"

namespace mmfree {

/// The matrix a projection multiplies by, [O, K]: ternary codes with a scale, or plain values. Plain f32 values under
/// bf16 activations make a product in f32: see below.
struct WeightMatrix {
  TernaryTensor ternary;
  Tensor plain;  ///< f32 | f64 | bf16; undefined when ternary

  bool is_ternary() const { return !plain.defined(); }
  int64_t rows() const { return is_ternary() ? ternary.codes.dim(0) : plain.dim(0); }
  int64_t cols() const { return is_ternary() ? ternary.cols : plain.dim(1); }
};

/// y = x Wᵀ.  x [N, K]: int8 codes with row scales for ternary W, plain for plain W of the same dtype; y [N, O] in x's
/// compute dtype, out. Where x and W are f32 and y is bf16, the product is f32 and y is rounded once. The bits of a row
/// of y do not depend on N or on the other rows. @throws ShapeError, DTypeError
void linear(const QuantTensor& x, const WeightMatrix& w, Tensor& y);

/// dx = beta·dx + dy W (W as quantised: straight-through for the activation quantiser).  dy [N, O], dx [N, K] in dy's
/// dtype. With dy of bf16 and W of f32 the product is f32.
void linear_dx(const Tensor& dy, const WeightMatrix& w, Tensor& dx, double beta);

/// dw = beta·dw + dyᵀ x (x as quantised: straight-through for the weight quantiser).  dw [O, K]. With dy of bf16 and x
/// of f32 the product is f32.
void linear_dw(const Tensor& dy, const QuantTensor& x, Tensor& dw, double beta);

}  // namespace mmfree
