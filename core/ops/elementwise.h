#pragma once
#include "core/tensor.h"

namespace mmfree {

/// y = a + b.  a, b, y: same shape and dtype (f32 | f64). y may be a or b. @throws ShapeError, DTypeError
void add(const Tensor& a, const Tensor& b, Tensor& y);

/// Converts between f64, f32 and bf16, rounding to nearest even; same shape. @throws ShapeError, DTypeError
void cast(const Tensor& from, Tensor& to);

/// Σ x² over a flat f32 | f64 buffer, as f64 sums of fixed 4,096-element partials added in index order.
double sum_of_squares(const Tensor& x);

struct ElementwiseArgs {
  const void *a, *b;
  void* y;
  int64_t n;
  DType dtype, to;
};

namespace cpu {
void add(const ElementwiseArgs&);
void cast(const ElementwiseArgs&);
double sum_of_squares(const ElementwiseArgs&);
}  // namespace cpu
namespace cuda {
void add(const ElementwiseArgs&);
void cast(const ElementwiseArgs&);
double sum_of_squares(const ElementwiseArgs&);
}  // namespace cuda

}  // namespace mmfree
