#include "core/cuda/bytes.cuh"
#include "core/cuda/code_blocks.h"
#include "core/cuda/common.cuh"
#include "core/ops/ternary_int8.h"
#include "core/quantize.h"

namespace mmfree::cuda {
namespace {

constexpr int kRows = int(kActivationBlock), kCols = 128;  // of a block's tile
constexpr int kStrip = 16;                                 // rows of a warp
constexpr int kWarps = kRows / kStrip, kThreads = kWarps * kWarp;
constexpr int kChunks = kRows / 16;
constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: the low bits of a sum are the nearest integer, halves to even

/// Four neighbouring codes of a row.
struct Four {
  uint32_t bytes;
  __device__ void load(const int8_t* from, int64_t left, bool wide) {
    bytes = 0;
    if (wide) {
      if (left > 0) bytes = *reinterpret_cast<const uint32_t*>(from);
    } else {
      for (int i = 0; i < 4 && i < left; ++i) bytes |= (uint32_t(from[i]) & 0xffu) << (8 * i);
    }
  }
  /// Makes the compiler compute the floats again instead of keeping them in registers.
  __device__ void forget() { asm volatile("" : "+r"(bytes)); }
  /// Code i as a float: its byte + 128 is the low byte of a float 2^23 + ...
  __device__ float operator[](int i) const {
    return __uint_as_float(__byte_perm(bytes ^ 0x80808080u, 0x4b000000u, 0x7650 + i)) - 8388736.0f;
  }
};

/// A tile of kRows x kCols codes. A thread has kStrip rows of four columns.
__global__ void __launch_bounds__(kThreads, 2)
    quantise(const int8_t* q, const float* step, const float* row_step, int8_t* blocks, float* scale, int64_t n,
             int64_t k, int64_t stride, bool wide) {
  __shared__ uint4 turned[kCols * kChunks];
  __shared__ uint32_t most[kWarps][kCols];
  begin_kernel();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t row = int64_t(blockIdx.x) * kRows + warp * kStrip, first = int64_t(blockIdx.y) * kCols;
  const int64_t col = first + lane * 4;
  Four in[kStrip];
#pragma unroll
  for (int i = 0; i < kStrip; ++i) in[i].load(q + (row + i) * k + col, row + i < n ? k - col : 0, wide);
  const int64_t mine = row + lane % kStrip;
  const float factor = mine < n ? __fmul_rn(step[mine], row_step[mine]) : 0.0f;
  uint32_t absmax[4] = {};
#pragma unroll
  for (int i = 0; i < kStrip; ++i) {
    const float f = __shfl_sync(0xffffffffu, factor, i);
#pragma unroll
    for (int c = 0; c < 4; ++c) absmax[c] = max(absmax[c], magnitude(__fmul_rn(in[i][c], f)));
  }
  *reinterpret_cast<uint4*>(&most[warp][4 * lane]) = {absmax[0], absmax[1], absmax[2], absmax[3]};
  __syncthreads();
  float inverse[4];
#pragma unroll
  for (int c = 0; c < 4; ++c) {
#pragma unroll
    for (int w = 0; w < kWarps; ++w) absmax[c] = max(absmax[c], most[w][4 * lane + c]);
    const ActivationScale<float> s = gradient_scale(__uint_as_float(absmax[c]));
    inverse[c] = s.inverse;
    if (warp == 0 && col + c < k) scale[blockIdx.x * stride + col + c] = s.step;
  }
#pragma unroll
  for (Four& x : in) x.forget();
  uint32_t words[4][4];
#pragma unroll
  for (int g = 0; g < 4; ++g) {
    float f[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) f[i] = __shfl_sync(0xffffffffu, factor, 4 * g + i);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      uint32_t code[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        code[i] = __float_as_uint(__fadd_rn(__fmul_rn(__fmul_rn(in[4 * g + i][c], f[i]), inverse[c]), kRound));
      words[c][g] = low_bytes(code[0], code[1], code[2], code[3]);
    }
  }
#pragma unroll
  for (int c = 0; c < 4; ++c)
    turned[(4 * lane + c) * kChunks + (warp ^ lane % 8)] = {words[c][0], words[c][1], words[c][2], words[c][3]};
  __syncthreads();
  const int64_t depth = int64_t(gridDim.x) * kRows;
#pragma unroll
  for (int i = 0; i < kCols * kChunks / kThreads; ++i) {
    const int at = i * kThreads + int(threadIdx.x), channel = at / kChunks, chunk = at % kChunks;
    if (first + channel < k)
      *reinterpret_cast<uint4*>(blocks + (first + channel) * depth + int64_t(blockIdx.x) * kRows + chunk * 16) =
          turned[channel * kChunks + (chunk ^ channel / 4 % 8)];
  }
}

}  // namespace

void code_blocks(const int8_t* q, const float* step, const float* row_step, int8_t* blocks, float* scale, int64_t n,
                 int64_t k) {
  const dim3 grid(unsigned(ceil_div(n, kRows)), unsigned(ceil_div(k, kCols)));
  const bool wide = k % 4 == 0 && reinterpret_cast<uintptr_t>(q) % 4 == 0;
  launch_kernel(quantise, {grid, kThreads}, q, step, row_step, blocks, scale, n, k, scale_stride(k), wide);
  check_launch("ternary_dw_int8");
}

}  // namespace mmfree::cuda
