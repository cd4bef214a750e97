#pragma once
#include "core/ops/ternary.h"

/// Products of a ternary projection's backward pass in 8 bits (`Products::int8`). Only the gradient is rounded, to the
/// nearest with `gradient_scale`: weights and activations are codes already. The bits do not depend on the number of
/// threads or the instruction set.
namespace mmfree {

/// Rows of a gradient that share the scales of `ternary_dw_int8`.
inline constexpr int64_t kGradientBlock = 128;

/// dx [N, K] A = beta·dx + A(P(Σ_o c[n, o] · weight[o, k]) · (s[n] · scale)), the sum exact in int32 (O <= 2^23).
///   dy [N, O] A;  c = round(dy / s) with one s per row, s[n] = max_o |dy[n, o]| / 127.
/// @throws ShapeError, DTypeError
void ternary_dx_int8(const Tensor& dy, const TernaryTensor& w, Tensor& dx, double beta);

/// dw [O, K] P = beta·dw + Σ_b P(Σ_{n in block b} c[n, o] · q[n, k]) · s[b, o], over blocks of kGradientBlock rows in
/// index order; the inner sum is exact in int32.
///   dy [N, O] A, q i8 [N, K], step [N] P;  g[n, o] = P(dy[n, o] · step[n]);  c = round(g / s) with one s per block and
///   channel, s[b, o] = max_{n in b} |g[n, o]| / 127.
/// @throws ShapeError, DTypeError
void ternary_dw_int8(const Tensor& dy, const Tensor& q, const Tensor& step, Tensor& dw, double beta);

/// Operands of `ternary_dx_int8`: dy [n, o], codes of W [o, k], dx [n, k].
struct TernaryDxInt8Args {
  const void* dy;
  const void* codes;
  const void* scale;
  void* dx;
  DType type;  ///< A
  int64_t n, o, k;
  double beta;
};
/// Operands of `ternary_dw_int8`: dy [n, o], q [n, k], dw [o, k].
struct TernaryDwInt8Args {
  const void* dy;
  const int8_t* q;
  const void* step;
  void* dw;
  DType type;  ///< A
  int64_t n, o, k;
  double beta;
};
namespace cpu {
void ternary_dx_int8(const TernaryDxInt8Args& args);
void ternary_dw_int8(const TernaryDwInt8Args& args);
}  // namespace cpu
namespace cuda {
void ternary_dx_int8(const TernaryDxInt8Args& args);
void ternary_dw_int8(const TernaryDwInt8Args& args);
}  // namespace cuda

}  // namespace mmfree
