#pragma once
#include <cuda_bf16.h>

#include "core/cuda/hopper.cuh"
#include "core/cuda/ternary_mma.h"

/// What the kernels of y = q wᵀ in ternary_mma.cu and ternary_mma_short.cu share.
namespace mmfree::cuda::ternary {

constexpr int kRows = 128, kCols = 256, kDepth = 128;  // of a block's tile; depth in elements = bytes
constexpr int kSums = kCols / 2;                       // sums of a thread: 64 x kCols over 128 threads

/// Two scaled sums as a pair of bf16, the first in the low half.
__device__ inline uint32_t scaled_pair(int a, int b, float scale) {
  const __nv_bfloat162 pair =
      __floats2bfloat162_rn(__fmul_rn(__int2float_rn(a), scale), __fmul_rn(__int2float_rn(b), scale));
  return reinterpret_cast<const uint32_t&>(pair);
}

/// The map of w for rows % 32 == 0, with every 32 rows permuted: row 8 j + 2 t + e in shared memory is row 8 t + 2 j +
/// e of the matrix (t, j < 4, e < 2). In a product, thread t of four gets the columns 8 j + 2 t + e, which are then
/// eight neighbouring columns of y: it stores them in one access.
inline CUtensorMap shuffled_rows_map(const int8_t* data, int64_t rows, int64_t cols, int box_rows) {
  const cuuint64_t line = cols, shape[] = {line, 2, 4, 4, cuuint64_t(rows / 32)};
  const cuuint64_t stride[] = {line, 8 * line, 2 * line, 32 * line};
  const cuuint32_t box[] = {kDepth, 2, 4, 4, cuuint32_t(box_rows / 32)};
  return hopper::tensor_map(data, 5, shape, stride, box);
}

/// Whether ternary_mma_short takes these shapes and is faster than the kernel for all shapes.
bool ternary_mma_short_pays(int64_t n, int64_t o, int64_t k);
/// ternary_mma with beta 0, for shapes that ternary_mma_short_pays.
void ternary_mma_short(const int8_t* q, const float* step, const int8_t* w, const float* scale, __nv_bfloat16* y,
                       int64_t n, int64_t o, int64_t k, cudaStream_t stream);

}  // namespace mmfree::cuda::ternary
