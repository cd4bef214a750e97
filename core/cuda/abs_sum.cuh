#pragma once
#include <cmath>

#include "core/cuda/common.cuh"
#include "core/ops/adamw.h"

namespace mmfree::cuda {

/// Σ |x| of kParamBlock numbers in shared memory, in f64 and in the order of the CPU: eight interleaved partial sums,
/// then pairs. Called by a whole warp; lane 0 has the sum. The additions of a warp depend on each other; the other
/// warps of the GPU hide their latency.
__device__ inline double ordered_abs_sum(const float* x) {
  const float* lane = x + threadIdx.x % 8;
  double sum = 0;
#pragma unroll 16
  for (int i = 0; i < kParamBlock; i += 8) sum += double(fabsf(lane[i]));
  for (int width = 4; width; width /= 2) sum += __shfl_down_sync(0xffffffffu, sum, width);
  return sum;
}

}  // namespace mmfree::cuda
