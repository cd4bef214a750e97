#include "core/ops/matmul.h"

#include "core/dispatch.h"

namespace mmfree {
namespace {

void check_dtypes(const Tensor& a, const Tensor& b, const Tensor& c, double alpha, double beta) {
  const DType in = a.dtype(), out = c.dtype();
  const bool fits = in == b.dtype() && ((in == DType::f64 && out == DType::f64) || (in == DType::f32 && out == in) ||
                                        (in == DType::bf16 && (out == DType::f32 || out == in)) ||
                                        (in == DType::i8 && out == DType::i32 && alpha == 1 && beta == 0));
  MMFREE_CHECK(DTypeError, fits, "matmul: no product of ", a.describe(), " and ", b.describe(), " into ", c.describe(),
               " with alpha ", alpha, ", beta ", beta,
               "; expected f64, f32, bf16 (into f32 or bf16) or i8 (into i32, alpha 1, beta 0)");
}

void check_devices(const char* op, const Tensor& a, const Tensor& b, const Tensor& c) {
  MMFREE_CHECK(Error, a.defined() && b.defined() && c.defined(), op, ": an operand is an undefined tensor");
  MMFREE_CHECK(DeviceError, a.device() == c.device() && b.device() == c.device(), op,
               ": operands on different devices: ", a.describe(), ", ", b.describe(), ", ", c.describe());
}

}  // namespace

void matmul(const Tensor& a, bool transpose_a, const Tensor& b, bool transpose_b, Tensor& c, double alpha, double beta,
            const Tensor& scale, Products products) {
  check_devices("matmul", a, b, c);
  check_dtypes(a, b, c, alpha, beta);
  const int64_t m = transpose_a ? a.cols() : a.rows(), k = transpose_a ? a.rows() : a.cols();
  const int64_t n = transpose_b ? b.rows() : b.cols(), k_b = transpose_b ? b.cols() : b.rows();
  MMFREE_CHECK(ShapeError, k == k_b && c.rows() == m && c.cols() == n, "matmul: ", a.shape(),
               transpose_a ? " transposed" : "", " times ", b.shape(), transpose_b ? " transposed" : "",
               " does not give ", c.shape());
  MMFREE_CHECK(ShapeError, a.dtype() != DType::i8 || k < int64_t(1) << 17, "matmul: sums of ", k,
               " products of i8 overflow i32; expected fewer than 131072");
  MMFREE_CHECK(DeviceError, !scale.defined() || (c.device() == Device::cuda && scale.device() == c.device()),
               "matmul: `scale` needs a product on a GPU, and must be on that GPU");
  MMFREE_CHECK(Error, !scale.defined() || (alpha == 1 && (beta == 0 || beta == 1)),
               "matmul: with `scale` alpha must be 1 and beta 0 or 1, got ", alpha, " and ", beta);
  MMFREE_CHECK(Error, k > 0 || c.device() == Device::cpu || beta == 0 || beta == 1,
               "matmul: an empty sum on a GPU needs beta 0 or 1, got ", beta);
  const bool round = products == Products::bf16;
  MMFREE_CHECK(DTypeError,
               products == Products::compute || (round && a.dtype() == DType::f32 && c.device() == Device::cpu),
               "matmul: ", name_of(products), " products of ", a.describe(), "; expected f32 on the CPU for bf16");
  if (m == 0 || n == 0) return;
  const MatmulArgs args{a.raw(), b.raw(), c.raw_mut(), a.dtype(), c.dtype(), transpose_a, transpose_b, m,
                        n,       k,       a.cols(),    b.cols(),  alpha,     beta,        round,       scale.raw()};
  MMFREE_DISPATCH(c.device(), matmul, args);
}

void linear_forward(const Tensor& x, const Tensor& w, Tensor& y) {
  check_devices("linear_forward", x, w, y);
  MMFREE_CHECK(DTypeError,
               (x.dtype() == DType::f32 || x.dtype() == DType::f64 ||
                (x.dtype() == DType::bf16 && x.device() == Device::cuda)) &&
                   w.dtype() == x.dtype() && y.dtype() == x.dtype(),
               "linear_forward: expected f32 or f64 throughout, or bf16 on a GPU, got ", x.describe(), ", ",
               w.describe(), ", ", y.describe());
  MMFREE_CHECK(ShapeError, x.cols() == w.cols() && y.rows() == x.rows() && y.cols() == w.rows(),
               "linear_forward: ", x.shape(), " times the transpose of ", w.shape(), " does not give ", y.shape());
  if (y.size() == 0) return;
  const LinearArgs args{x.raw(), w.raw(), y.raw_mut(), x.dtype(), x.rows(), w.rows(), x.cols()};
  MMFREE_DISPATCH(y.device(), linear_forward, args);
}

}  // namespace mmfree
