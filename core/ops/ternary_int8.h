#pragma once
#include "core/ops/ternary.h"

/// Products of a ternary projection's backward pass in 8 bits (`Products::int8`). Weights and activations are codes
/// already; the gradient is rounded to the nearest with `gradient_scale`. The bits do not depend on the number of
/// threads or the instruction set.
namespace mmfree {

/// Whether the gradient of a weight [O, K] is computed in 8 bits too. On a GPU that pays where x, which is rounded
/// again for it, is narrow against dy; elsewhere it is a product of values in A.
constexpr bool int8_weight_gradient(Device device, int64_t o, int64_t k) { return device == Device::cpu || o >= 2 * k; }
/// Whether the gradient of the input of a weight [O, K] is computed in 8 bits. Rounding costs O numbers a row, and a
/// product of depth O gains O · K: on a GPU it pays for wide rows of x, or where the weight's gradient takes the same
/// codes.
constexpr bool int8_input_gradient(Device device, int64_t o, int64_t k) {
  return k >= 1024 || int8_weight_gradient(device, o, k);
}

/// Rows of a gradient that share the scales of `ternary_dw_int8`.
inline constexpr int64_t kGradientBlock = 128;

/// The rows of a gradient in 8 bits, for dy [N, O] A with one step per row:
///   m[n] = max_o |dy[n, o]|,  c = round_half_away(dy · (127 / m)),  s = m / 127,  dy ≈ c · s
/// as `gradient_scale` says. A row with a NaN or an infinity has a step that is not finite.
/// @param rows  i8 codes [N, O] and steps [N] P, out; see `make_gradient_rows`
/// @throws ShapeError, DTypeError
void gradient_rows(const Tensor& dy, QuantTensor& rows);
/// Uninitialised rows for a gradient of dtype A = `compute`.
QuantTensor make_gradient_rows(int64_t n, int64_t o, DType compute, Device device);

/// dx [N, K] A = beta·dx + A(P(Σ_o c[n, o] · weight[o, k]) · (s[n] · scale)), the sum exact in int32 (O <= 2^23).
///   c, s: the rows of dy [N, O]. On a GPU they are used if dy has them; the CPU makes them from the values.
/// On a GPU the tensor cores multiply where they can; otherwise a plain kernel gives the same bits.
/// @throws ShapeError, DTypeError
void ternary_dx_int8(const Gradient& dy, const TernaryTensor& w, Tensor& dx, double beta);

/// The gradient of a weight, dw [O, K] P, for dy [N, O], q i8 [N, K], step [N] P. Each device has a rounding of its
/// own.
///
/// On the CPU dy times the steps is rounded; q is exact. Blocks are of kGradientBlock rows, in index order:
///   g[n, o] = P(dy[n, o] · step[n]),  s[b, o] = max_{n in b} |g[n, o]| / 127,  c = round_half_away(g / s)
///   dw = beta·dw + Σ_b P(Σ_{n in block b} c[n, o] · q[n, k]) · s[b, o]
///
/// On a GPU dy is there by rows alone (codes c, steps s), and x times their steps is rounded. Blocks are of
/// kActivationBlock rows, in index order:
///   f[n] = s[n] · step[n],  g[n, k] = q[n, k] · f[n],  m[b, k] = max_{n in b} |g[n, k]|,  t[b, k] = m / 127,
///   d = round_half_even(g · (127 / m)), each product rounded
///   p = Σ_b P(Σ_{n in block b} c[n, o] · d[n, k]) · t[b, k]
///   dw = ((beta·dw + p_0) + p_1) + ..., one p for each of `activation_parts` consecutive parts of the blocks
/// On the tensor cores where they can; otherwise plain kernels give the same bits.
///
/// The inner sums are exact in int32. @throws ShapeError, DTypeError
void ternary_dw_int8(const Gradient& dy, const Tensor& q, const Tensor& step, Tensor& dw, double beta);

/// Rows of x that share the scales on a GPU. Sums of so many products of codes stay below 2^22.
inline constexpr int64_t kActivationBlock = 256;
/// The parts of N rows for dw [O, K]: it depends on nothing else.
int activation_parts(int64_t o, int64_t k, int64_t n);
/// Elements from the scales of a block to those of the next, for K columns.
constexpr int64_t scale_stride(int64_t k) { return (k + 255) / 256 * 256; }

struct GradientRowsArgs {
  const void* dy;
  int8_t* codes;
  void* steps;
  DType type;  ///< A
  int64_t n, o;
};
/// Operands of `ternary_dx_int8`: dy [n, o], codes of W [o, k], dx [n, k].
struct TernaryDxInt8Args {
  const void* dy;      ///< CPU
  const int8_t* rows;  ///< GPU: dy in 8 bits
  const void* steps;
  int8_t* turned;  ///< GPU: workspace for the codes of Wᵀ [k, o]
  const void* codes;
  const void* scale;
  void* dx;
  DType type;  ///< A
  int64_t n, o, k;
  double beta;
};
/// Operands of `ternary_dw_int8`: dy [n, o], q [n, k], dw [o, k].
struct TernaryDwInt8Args {
  const void* dy;      ///< CPU
  const int8_t* rows;  ///< GPU: dy in 8 bits
  const void* row_steps;
  const int8_t* q;
  const void* step;
  void* dw;
  DType type;  ///< P
  int64_t n, o, k;
  double beta;
  // Workspace of a GPU.
  int8_t* blocks;  ///< d transposed: [k, n rounded up to whole blocks]
  float* scales;   ///< [blocks of rows, scale_stride(k)]
  float* parts;    ///< [activation_parts - 1, o, k]
};
namespace cpu {
void gradient_rows(const GradientRowsArgs& args);
void ternary_dx_int8(const TernaryDxInt8Args& args);
void ternary_dw_int8(const TernaryDwInt8Args& args);
}  // namespace cpu
namespace cuda {
void gradient_rows(const GradientRowsArgs& args);
void ternary_dx_int8(const TernaryDxInt8Args& args);
void ternary_dw_int8(const TernaryDwInt8Args& args);
}  // namespace cuda

}  // namespace mmfree
