#pragma once
#include <string>
#include <vector>

#include "core/quant_tensor.h"

namespace mmfree {

/// Columns per packed block. A block is 32 bytes; byte j holds columns j, j+32, j+64, j+96 of the block in bits 0-1,
/// 2-3, 4-5, 6-7. A code is weight + 1, one of {0, 1, 2}. Rows are padded to whole blocks with code 1 (weight 0).
inline constexpr int64_t kTernaryBlock = 128;
inline constexpr int64_t kTernaryBlockBytes = 32;

/// Bytes of one packed row: ceil(cols / 128) * 32.
int64_t ternary_row_bytes(int64_t cols);

/// A ternary matrix [rows(), cols]: value = weight * scale, weight in {-1, 0, 1}. On the CPU the codes are packed as
/// above. On a GPU a code is the weight itself, the form that tensor cores multiply.
struct TernaryTensor {
  Tensor codes;  ///< CPU: u8 [rows, ternary_row_bytes(cols)]; GPU: i8 [rows, cols]
  Tensor scale;  ///< [1] P
  int64_t cols = 0;
  int64_t rows() const { return codes.rows(); }
};

/// Packs weights {-1, 0, 1} [rows, cols] into rows of ternary_row_bytes(cols) bytes.
void pack_ternary(const int8_t* weights, int64_t rows, int64_t cols, uint8_t* packed);

/// An uninitialised matrix. @throws DTypeError unless scale_dtype is f32 or f64.
TernaryTensor make_ternary(int64_t rows, int64_t cols, DType scale_dtype, Device device = Device::cpu);

/// `w` on another device, in that device's layout of the codes.
TernaryTensor to_device(const TernaryTensor& w, Device device);

/// Quantises w [O, K] (dtype of out.scale) into codes and scale (absmean, see core/quantize.h). mean |W| is the sum of
/// fixed 4096-element partials of the contiguous matrix, in f64 and index order. @throws ShapeError, DTypeError
void ternary_quantise(const Tensor& w, TernaryTensor& out);

/// One matrix inside a flat parameter buffer: it starts at element `offset`, a multiple of kParamBlock.
struct TernaryJob {
  int64_t offset;
  TernaryTensor out;
};

/// `ternary_quantise` of many matrices of the flat buffer `values` [P] at once. `abs_sums` [P / kParamBlock] f64 as
/// `adamw` writes them; undefined: they are computed, for which the weights are read once more. Codes and scales are
/// the same in both cases, on one device. @throws ShapeError, DTypeError
void ternary_quantise_flat(const Tensor& values, const Tensor& abs_sums, std::vector<TernaryJob>& jobs);

/// out [O, K] A = weight * scale; without `scaled` the weight alone. @throws ShapeError, DTypeError
void ternary_dequantise(const TernaryTensor& w, Tensor& out, bool scaled = true);

/// y[n, o] = A(P(sum_k q[n, k] * weight[o, k]) * (step[n] * scale)), the sum exact in int32 (K <= 2^23).
///   q i8 [N, K], step [N] P, y [N, O] A.
/// The bits do not depend on N, the number of threads or the instruction set. @throws ShapeError, DTypeError
void ternary_linear(const Tensor& q, const Tensor& step, const TernaryTensor& w, Tensor& y);

/// Gradient of `ternary_linear` with respect to its input q * step: dx [N, K] A = dy [N, O] A * W + beta * dx, W =
/// weight * scale.
/// With `products` bf16 dy is rounded to bf16, and the scale multiplies the sums. `dense` comes from ternary_dx_weights
/// for the same W, dtype of dy and products; undefined: made for this call. @throws ShapeError, DTypeError
void ternary_linear_dx(const Tensor& dy, const TernaryTensor& w, Tensor& dx, double beta,
                       Products products = Products::compute, const Tensor& dense = Tensor());

/// The matrix [O, K] of dtype t that ternary_linear_dx multiplies a dy of dtype t by; undefined where it makes a few
/// rows of it at a time.
Tensor ternary_dx_weights(const TernaryTensor& w, DType t, Products products = Products::compute);

/// Gradient with respect to the latent weight (straight-through): dw [O, K] P = dy [N, O]^T * A(q [N, K] * step [N]) +
/// beta * dw.
/// With `products` bf16 both operands, dy and q * step, are rounded to bf16. @throws ShapeError, DTypeError
void ternary_linear_dw(const Tensor& dy, const Tensor& q, const Tensor& step, Tensor& dw, double beta,
                       Products products = Products::compute);

/// Dense weights [rows, cols] -> codes and scale.
struct TernaryQuantiseArgs {
  const void* weights;
  void* codes;
  void* scale;
  DType type;
  int64_t rows, cols;
};
/// Codes and scale -> dense weights [rows, cols].
struct TernaryDequantiseArgs {
  const void* codes;
  const void* scale;  ///< null: the weights without a scale
  void* weights;
  DType type;
  int64_t rows, cols;
};
struct TernaryQuantiseFlatArgs {
  struct Job {
    int64_t offset, rows, cols;
    void* codes;
    void* scale;
  };
  const void* values;
  const double* abs_sums;  ///< or null
  int64_t blocks;
  std::vector<Job> jobs;
  DType type;
};
struct TernaryLinearArgs {
  const int8_t* q;
  const void* step;
  const void* codes;
  const void* scale;
  void* y;
  DType type;  ///< A
  int64_t n, o, k;
};
/// u[n, k] = A(q[n, k] * step[n]).
struct ScaleCodesArgs {
  const int8_t* q;
  const void* step;
  void* u;
  DType type;  ///< A
  int64_t n, k;
};
namespace cpu {
/// The instruction sets for products of ternary matrices that this machine has, fastest first. The first is used.
std::vector<std::string> ternary_instruction_sets();
void ternary_quantise(const TernaryQuantiseArgs& args);
void ternary_quantise_flat(const TernaryQuantiseFlatArgs& args);
void ternary_dequantise(const TernaryDequantiseArgs& args);
void ternary_linear(const TernaryLinearArgs& args);
void scale_codes(const ScaleCodesArgs& args);
}  // namespace cpu
namespace cuda {
void ternary_quantise(const TernaryQuantiseArgs& args);
void ternary_quantise_flat(const TernaryQuantiseFlatArgs& args);
void ternary_dequantise(const TernaryDequantiseArgs& args);
void ternary_linear(const TernaryLinearArgs& args);
void scale_codes(const ScaleCodesArgs& args);
}  // namespace cuda

}  // namespace mmfree
