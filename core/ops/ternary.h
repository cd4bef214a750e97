#pragma once
#include "core/tensor.h"

namespace mmfree {

/// Columns per packed block. A block is 32 bytes; byte j holds columns j, j+32, j+64, j+96 of the block in bits 0-1,
/// 2-3, 4-5, 6-7. A code is weight + 1, one of {0, 1, 2}. Rows are padded to whole blocks with code 1 (weight 0).
inline constexpr int64_t kTernaryBlock = 128;
inline constexpr int64_t kTernaryBlockBytes = 32;

/// Bytes of one packed row: ceil(cols / 128) * 32.
int64_t ternary_row_bytes(int64_t cols);

/// A ternary matrix [rows(), cols] ready to multiply: value = (code - 1) * scale.
struct TernaryTensor {
  Tensor codes;  ///< u8 [rows, ternary_row_bytes(cols)]
  Tensor scale;  ///< [1] f32 or f64
  int64_t cols = 0;
  int64_t rows() const { return codes.rows(); }
};

/// An uninitialised matrix. @throws DTypeError unless scale_dtype is f32 or f64.
TernaryTensor make_ternary(int64_t rows, int64_t cols, DType scale_dtype);

/// Quantises w [O, K] (dtype of out.scale) into codes and scale (absmean, see core/quantize.h). mean |W| is the sum of
/// fixed 4096-element partials of the contiguous matrix, in f64 and index order. @throws ShapeError, DTypeError
void ternary_quantise(const Tensor& w, TernaryTensor& out);

/// out [O, K] (f32 or f64) = (code - 1) * scale. @throws ShapeError, DTypeError
void ternary_dequantise(const TernaryTensor& w, Tensor& out);

/// y[n, o] = float(sum_k q[n, k] * (code[o, k] - 1)) * (step[n] * scale), the sum exact in int32 (K <= 2^23).
///   q i8 [N, K], step [N], y [N, O]; step, scale and y share f32 or f64.
/// The bits depend neither on N, the number of threads nor the instruction set. @throws ShapeError, DTypeError
void ternary_linear(const Tensor& q, const Tensor& step, const TernaryTensor& w, Tensor& y);

/// Gradient of `ternary_linear` by its input q * step: dx [N, K] = dy [N, O] * W + beta * dx, W = (code - 1) * scale.
/// @throws ShapeError, DTypeError
void ternary_linear_dx(const Tensor& dy, const TernaryTensor& w, Tensor& dx, double beta);

/// Gradient by the weight (straight through): dw [O, K] = dy [N, O]^T * (q [N, K] * step [N]) + beta * dw.
/// @throws ShapeError, DTypeError
void ternary_linear_dw(const Tensor& dy, const Tensor& q, const Tensor& step, Tensor& dw, double beta);

/// Dense weights [rows, cols] -> codes and scale.
struct TernaryQuantiseArgs {
  const void* weights;
  uint8_t* codes;
  void* scale;
  DType type;
  int64_t rows, cols;
};
/// Codes and scale -> dense weights [rows, cols].
struct TernaryDequantiseArgs {
  const uint8_t* codes;
  const void* scale;
  void* weights;
  DType type;
  int64_t rows, cols;
};
struct TernaryLinearArgs {
  const int8_t* q;
  const void* step;
  const uint8_t* codes;
  const void* scale;
  void* y;
  DType type;
  int64_t n, o, k;
};
/// u[n, k] = q[n, k] * step[n].
struct ScaleCodesArgs {
  const int8_t* q;
  const void* step;
  void* u;
  DType type;
  int64_t n, k;
};
namespace cpu {
void ternary_quantise(const TernaryQuantiseArgs& args);
void ternary_dequantise(const TernaryDequantiseArgs& args);
void ternary_linear(const TernaryLinearArgs& args);
void scale_codes(const ScaleCodesArgs& args);
}  // namespace cpu

}  // namespace mmfree
