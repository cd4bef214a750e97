#include "core/ops/linear.h"

#include "core/ops/elementwise.h"
#include "core/ops/matmul.h"
#include "core/ops/ternary_int8.h"

namespace mmfree {
namespace {

/// Whether a product must be computed in f32: the projection has precision f32, the activations are bf16.
bool widens(const Tensor& narrow, const Tensor& wide) {
  return narrow.defined() && wide.defined() && narrow.dtype() == DType::bf16 && wide.dtype() == DType::f32;
}

Tensor as_f32(const Tensor& t) {
  Tensor wide(t.shape(), DType::f32, t.device());
  cast(t, wide);
  return wide;
}

}  // namespace

void linear(const QuantTensor& x, const WeightMatrix& w, Tensor& y) {
  MMFREE_CHECK(DTypeError, x.quantised() == w.is_ternary(), "linear: got ", x.quantised() ? "quantised" : "plain",
               " activations and ", w.is_ternary() ? "ternary" : "plain",
               " weights; expected quantised and ternary, or both plain");
  if (x.quantised()) return ternary_linear(x.values, x.scale, w.ternary, y);
  if (!widens(y, x.values)) return linear_forward(x.values, w.plain, y);
  Tensor wide(y.shape(), DType::f32, y.device());
  linear_forward(x.values, w.plain, wide);
  cast(wide, y);
}

Tensor linear_dx_weights(const WeightMatrix& w, DType t) {
  return w.is_ternary() && w.backward != Products::int8 ? ternary_dx_weights(w.ternary, t, w.backward) : Tensor();
}

void linear_dx(const Gradient& gradient, const WeightMatrix& w, Tensor& dx, double beta, const Tensor& dense) {
  Products products = w.backward;
  if (products == Products::int8 && !int8_input_gradient(dx.device(), w.rows(), w.cols())) products = Products::compute;
  if (w.is_ternary() && products == Products::int8) return ternary_dx_int8(gradient, w.ternary, dx, beta);
  const Tensor& dy = gradient.values;
  if (w.is_ternary()) return ternary_linear_dx(dy, w.ternary, dx, beta, products, dense);
  if (!widens(dy, w.plain)) return matmul(dy, false, w.plain, false, dx, 1, beta, Tensor(), products);
  Tensor wide = beta != 0 ? as_f32(dx) : Tensor(dx.shape(), DType::f32, dx.device());
  matmul(as_f32(dy), false, w.plain, false, wide, 1, beta);
  cast(wide, dx);
}

void linear_dw(const Gradient& gradient, const QuantTensor& x, Tensor& dw, double beta, Products products) {
  if (products == Products::int8 && !int8_weight_gradient(dw.device(), dw.rows(), dw.cols()))
    products = Products::compute;
  MMFREE_CHECK(DTypeError, products != Products::int8 || x.quantised(),
               "linear_dw: products in int8 need quantised activations, got ", x.values.describe());
  const Tensor& dy = gradient.values;
  if (products == Products::int8)
    ternary_dw_int8(gradient, x.values, x.scale, dw, beta);
  else if (x.quantised())
    ternary_linear_dw(dy, x.values, x.scale, dw, beta, products);
  else
    matmul(widens(dy, x.values) ? as_f32(dy) : dy, true, x.values, false, dw, 1, beta, Tensor(), products);
}

}  // namespace mmfree
