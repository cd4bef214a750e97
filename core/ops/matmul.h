#pragma once
#include "core/quant_tensor.h"

namespace mmfree {

/// C = alpha * op(A) * op(B) + beta * C, with op = transpose where the flag is set. Row-major; a tensor of rank above 2
/// counts as the matrix [rows(), cols()]. C must not overlap A or B.
///   op(A) [M, K], op(B) [K, N], C [M, N]; with beta = 0, C is never read.
/// dtypes of A, B -> C: f64 -> f64; f32 -> f32 (products in f32, not in TF32); bf16 -> f32 or bf16 (sums in f32);
/// i8 -> i32 (alpha 1, beta 0, K < 2^17, exact). The bits do not depend on the number of threads.
/// `scale` [1] f32, GPU only, is one more factor of alpha. It is read from memory, so a recorded step sees a new value.
/// With `products` bf16, CPU only, f32 operands are rounded to bf16 first: the products are exact, the sums f32. Where
/// the processor has fast instructions for that they are used, with an order of their own.
/// @throws ShapeError, DTypeError, DeviceError
void matmul(const Tensor& a, bool transpose_a, const Tensor& b, bool transpose_b, Tensor& c, double alpha = 1,
            double beta = 0, const Tensor& scale = Tensor(), Products products = Products::compute);

/// y[N, O] = x[N, K] * w[O, K]^T, all of dtype A. On the CPU the bits of a row of y depend on that row of x and on w
/// only, not on N or on the number of threads, so that prefill and token-by-token decoding agree.
/// @throws ShapeError, DTypeError, DeviceError
void linear_forward(const Tensor& x, const Tensor& w, Tensor& y);

/// Operands of `matmul`; leading dimensions are those of the stored (not transposed) matrices.
struct MatmulArgs {
  const void* a;
  const void* b;
  void* c;
  DType type_ab, type_c;
  bool transpose_a, transpose_b;
  int64_t m, n, k, lda, ldb;
  double alpha, beta;
  bool round;         ///< on the CPU: round f32 operands to bf16
  const void* scale;  ///< on a GPU: f32 in device memory that multiplies alpha; or null
};
/// Operands of `linear_forward`: x [n, k], w [o, k], y [n, o].
struct LinearArgs {
  const void* x;
  const void* w;
  void* y;
  DType type;
  int64_t n, o, k;
};
namespace cpu {
void matmul(const MatmulArgs& args);
void linear_forward(const LinearArgs& args);
}  // namespace cpu
namespace cuda {
void matmul(const MatmulArgs& args);
void linear_forward(const LinearArgs& args);
}  // namespace cuda

}  // namespace mmfree
