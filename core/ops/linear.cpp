#include "core/ops/linear.h"

#include "core/ops/matmul.h"

namespace mmfree {

void linear(const QuantTensor& x, const WeightMatrix& w, Tensor& y) {
  MMFREE_CHECK(DTypeError, x.quantised() == w.is_ternary(), "linear: ", x.quantised() ? "quantised" : "plain",
               " activations meet ", w.is_ternary() ? "ternary" : "plain", " weights");
  if (x.quantised())
    ternary_linear(x.values, x.scale, w.ternary, y);
  else
    linear_forward(x.values, w.plain, y);
}

void linear_dx(const Tensor& dy, const WeightMatrix& w, Tensor& dx, double beta) {
  if (w.is_ternary())
    ternary_linear_dx(dy, w.ternary, dx, beta);
  else
    matmul(dy, false, w.plain, false, dx, 1, beta);
}

void linear_dw(const Tensor& dy, const QuantTensor& x, Tensor& dw, double beta) {
  if (x.quantised())
    ternary_linear_dw(dy, x.values, x.scale, dw, beta);
  else
    matmul(dy, true, x.values, false, dw, 1, beta);
}

}  // namespace mmfree
