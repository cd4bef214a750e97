#pragma once
#include "core/tensor.h"

namespace mmfree {

/// y = a + b, same shape.  a, y: P or A; b: a's dtype or A. y may be a or b.
/// @throws ShapeError, DTypeError, DeviceError
void add(const Tensor& a, const Tensor& b, Tensor& y);

/// to = from, converted between f64, f32 and bf16, rounded to nearest even; same shape.
/// @throws ShapeError, DTypeError, DeviceError
void cast(const Tensor& from, Tensor& to);

/// Every element of y (f32, f64 or bf16) becomes `value`.
void fill(Tensor& y, double value);

/// out [1] f64 = beta·out + scale·Σ x, x any shape f32 | f64. The sum is made of fixed 4,096-element partials in f64,
/// added in a fixed order (on the CPU the order of the index): the same bits for any number of threads. `scale` is a
/// number or a tensor [1] f64. @throws ShapeError, DTypeError, DeviceError
void sum(const Tensor& x, double scale, Tensor& out, double beta = 0);
void sum(const Tensor& x, const Tensor& scale, Tensor& out);

/// out [1] f64 = Σ x², x f32 | f64, or bf16 on a GPU: sums of fixed 4,096-element partials, added as in `sum`. The CPU
/// squares in x's dtype, a GPU in f64.
void sum_of_squares(const Tensor& x, Tensor& out);

struct ElementwiseArgs {
  const void *a, *b;
  void* y;
  int64_t n;
  DType type_a, type_b, type_y;
};
struct FillArgs {
  void* y;
  int64_t n;
  double value;
  DType dtype;
};
struct SumArgs {
  const void* x;
  double* out;
  int64_t n;
  double scale, beta;
  const double* factor;  ///< one more factor of the sum, [1], or null
  DType dtype;
};

namespace cpu {
void add(const ElementwiseArgs&);
void cast(const ElementwiseArgs&);
void fill(const FillArgs&);
void sum(const SumArgs&);
void sum_of_squares(const SumArgs&);
}  // namespace cpu
namespace cuda {
void add(const ElementwiseArgs&);
void cast(const ElementwiseArgs&);
void fill(const FillArgs&);
void sum(const SumArgs&);
void sum_of_squares(const SumArgs&);
}  // namespace cuda

}  // namespace mmfree
