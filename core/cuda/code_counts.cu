#include "core/cuda/common.cuh"
#include "core/ops/code_counts.h"

namespace mmfree::cuda {
namespace {

constexpr int kWarps = 8;

__device__ int warp_count(int x) {
#pragma unroll
  for (int width = kWarp / 2; width; width /= 2) x += __shfl_xor_sync(0xffffffffu, x, width);
  return x;
}

/// One warp per row. Lane j packs byte j of each block of kTernaryBlock columns.
__global__ void __launch_bounds__(kWarps* kWarp) count_ternary(const int8_t* codes, uint8_t* before, int64_t* counts,
                                                               int64_t rows, int64_t cols, int64_t row_bytes) {
  __shared__ int parts[kWarps][3];
  begin_kernel();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t row = int64_t(blockIdx.x) * kWarps + warp;
  int zeros = 0, flips = 0;
  for (int64_t b = 0; row < rows && b < row_bytes / kTernaryBlockBytes; ++b) {
    uint32_t packed = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t col = b * kTernaryBlock + i * kWarp + lane;
      const int code = col < cols ? codes[row * cols + col] : 0;
      zeros += col < cols && code == 0;
      packed |= uint32_t(code + 1) << (2 * i);
    }
    uint8_t* const kept = before + row * row_bytes + b * kTernaryBlockBytes + lane;
    const uint32_t changed = packed ^ *kept;
    flips += __popc((changed | changed >> 1) & 0x55u);
    *kept = uint8_t(packed);
  }
  zeros = warp_count(zeros), flips = warp_count(flips);
  if (lane == 0) parts[warp][0] = zeros, parts[warp][1] = flips, parts[warp][2] = row < rows && zeros == cols;
  __syncthreads();
  if (threadIdx.x >= 3) return;
  unsigned long long sum = 0;
  for (const auto& part : parts) sum += part[threadIdx.x];
  atomicAdd(reinterpret_cast<unsigned long long*>(counts) + threadIdx.x, sum);
}

/// One warp per row.
__global__ void __launch_bounds__(kWarps* kWarp) count_rows(const int8_t* q, int64_t* counts, int64_t n, int64_t k) {
  begin_kernel();
  const int lane = threadIdx.x % kWarp;
  const int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (row >= n) return;
  int squares = 0, most = 0;  // of a lane: at most 2^22 / 32 codes
  for (int64_t i = lane; i < k; i += kWarp) {
    const int code = q[row * k + i];
    squares += code * code;
    most += code == 127 || code == -127;
  }
  int64_t all = squares;
#pragma unroll
  for (int width = kWarp / 2; width; width /= 2) all += __shfl_xor_sync(0xffffffffu, all, width);
  most = warp_count(most);
  if (lane == 0) counts[2 * row] = all, counts[2 * row + 1] = most;
}

}  // namespace

void ternary_code_counts(const TernaryCodeCountsArgs& g) {
  if (g.rows == 0) return;
  launch_kernel(count_ternary, {unsigned(ceil_div(g.rows, kWarps)), kWarps * kWarp},
                static_cast<const int8_t*>(g.codes), g.before, g.counts, g.rows, g.cols, ternary_row_bytes(g.cols));
  check_launch("ternary_code_counts");
}

void row_code_counts(const RowCodeCountsArgs& g) {
  MMFREE_CHECK(ShapeError, g.k <= int64_t(1) << 22, "row_code_counts: rows of ", g.k, " codes are too long for a GPU");
  if (g.n == 0) return;
  launch_kernel(count_rows, {unsigned(ceil_div(g.n, kWarps)), kWarps * kWarp}, g.q, g.counts, g.n, g.k);
  check_launch("row_code_counts");
}

}  // namespace mmfree::cuda
