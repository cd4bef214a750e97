#include "core/ops/swiglu.h"

#include "core/dispatch.h"
#include "core/ops/check.h"

namespace mmfree {
namespace {

void check_halves(const char* op, const Tensor& x) {
  check_float(op, "x", x, 2);
  MMFREE_CHECK(ShapeError, x.dim(1) % 2 == 0, op, ": x must have an even number of columns, got ", x.describe());
}

}  // namespace

void swiglu(const Tensor& x, Tensor& y) {
  check_halves("swiglu", x);
  const int64_t n = x.dim(0), i = x.dim(1) / 2;
  check_tensor("swiglu", "y", y, {n, i}, x.dtype());
  MMFREE_DISPATCH(x.device(), swiglu, SwigluArgs{x.raw(), nullptr, y.raw_mut(), n, i, x.dtype()});
}

void swiglu_backward(const Tensor& x, const Tensor& dy, Tensor& dx) {
  check_halves("swiglu_backward", x);
  const int64_t n = x.dim(0), i = x.dim(1) / 2;
  check_tensor("swiglu_backward", "dy", dy, {n, i}, x.dtype());
  check_tensor("swiglu_backward", "dx", dx, x.shape(), x.dtype());
  MMFREE_DISPATCH(x.device(), swiglu_backward, SwigluArgs{x.raw(), dy.raw(), dx.raw_mut(), n, i, x.dtype()});
}

}  // namespace mmfree
