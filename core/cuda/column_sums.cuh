#pragma once
#include "core/cuda/common.cuh"

/// Second pass of column sums. The blocks of a first kernel write partial sums; this kernel adds them in an order that
/// depends on their number alone.
namespace mmfree::cuda {

constexpr int kMaxColumnSums = 8;

struct ColumnSums {
  const float* partial;  ///< [blocks, slots, d]
  int64_t blocks, d;
  int slots;
  struct {
    float* out;  ///< [d], = beta · out + Σ_blocks partial; null: not wanted
    float beta;
  } of[kMaxColumnSums];
};

/// A block adds 32 columns of one slot. Warp w adds partials w, w + 32, …; then the 32 warps' sums are added.
static __global__ void __launch_bounds__(kWarp* kWarp) add_column_sums(const ColumnSums p) {
  __shared__ float sums[kWarp][kWarp + 1];
  begin_kernel();
  const auto [out, beta] = p.of[blockIdx.y];
  if (!out) return;
  const int64_t first = int64_t(blockIdx.x) * kWarp, column = first + threadIdx.x;
  float sum = 0;
  if (column < p.d)
#pragma unroll 4
    for (int64_t b = threadIdx.y; b < p.blocks; b += kWarp) sum += p.partial[(b * p.slots + blockIdx.y) * p.d + column];
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  const float total = warp_sum(sums[threadIdx.x][threadIdx.y]);
  const int64_t mine = first + threadIdx.y;
  if (threadIdx.x == 0 && mine < p.d) out[mine] = (beta == 0 ? 0.0f : beta * out[mine]) + total;
}

inline void finish_column_sums(const ColumnSums& p, const char* op) {
  bool wanted = false;
  for (int s = 0; s < p.slots; ++s) wanted |= p.of[s].out != nullptr;
  if (!wanted || p.d == 0) return;
  launch_kernel(add_column_sums, {dim3(unsigned(ceil_div(p.d, kWarp)), unsigned(p.slots)), dim3(kWarp, kWarp)}, p);
  check_launch(op);
}

}  // namespace mmfree::cuda
