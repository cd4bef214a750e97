#pragma once
#include <cmath>

#include "core/cuda/common.cuh"
#include "core/ops/adamw.h"

namespace mmfree::cuda {

/// Σ |x| of kParamBlock numbers in shared memory, in f64 and in the order of the CPU: eight interleaved lanes, then
/// pairs. Called by a whole warp; lane 0 has the sum. One chain of additions is slow, but a GPU has thousands at a
/// time.
__device__ inline double ordered_abs_sum(const float* x) {
  const float* lane = x + threadIdx.x % 8;
  double sum = 0;
#pragma unroll 16
  for (int i = 0; i < kParamBlock; i += 8) sum += double(fabsf(lane[i]));
  for (int width = 4; width; width /= 2) sum += __shfl_down_sync(0xffffffffu, sum, width);
  return sum;
}

}  // namespace mmfree::cuda
