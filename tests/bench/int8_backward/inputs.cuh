#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "tests/bench/int8_backward/device.cuh"

/// Random inputs.
namespace mmfree::int8_backward {

__device__ inline uint32_t hash(uint64_t i, uint32_t seed) {
  uint64_t x = i * 0x9e3779b97f4a7c15u + seed * 0xd1b54a32d192ed03u;
  x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
  x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
  return uint32_t(x >> 32);
}
/// About normal, standard deviation 1, at most 3.5.
__device__ inline float normal(uint64_t i, uint32_t seed) {
  const uint32_t a = hash(i, seed), b = hash(i, seed + 77);
  float sum = 0;
  for (int k = 0; k < 4; ++k) sum += float(a >> 8 * k & 255) + float(b >> 8 * k & 255);
  return (sum - 1020.0f) * (1.0f / 209.0f);
}
#define EACH(i, size) \
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < (size); i += int64_t(gridDim.x) * blockDim.x)
__global__ void fill_codes(int8_t* q, int64_t size, uint32_t seed) {
  EACH(i, size) q[i] = int8_t(max(-127.0f, min(127.0f, normal(i, seed) * 34.0f)));
}
__global__ void fill_weights(int8_t* w, int64_t size, uint32_t seed) {
  EACH(i, size) w[i] = int8_t(hash(i, seed) % 3) - 1;
}
__global__ void fill_floats(float* x, int64_t size, uint32_t seed) {
  EACH(i, size) x[i] = ldexpf(1.0f + hash(i, seed) * 0x1p-32f, -int(hash(i, seed + 1) % 6));
}
/// Gradients: rows of different sizes.
__global__ void fill_gradients(Bf16* x, int64_t n, int64_t o, uint32_t seed) {
  EACH(i, n * o) x[i] = __float2bfloat16_rn(ldexpf(normal(i, seed), -14 - int(hash(i / o, seed + 5) % 5)));
}
__global__ void find_absmax(const Bf16* x, float* absmax, int64_t n, int64_t o) {
  EACH(i, n) {
    float most = 0;
    for (int64_t c = 0; c < o; ++c) most = fmaxf(most, fabsf(__bfloat162float(x[i * o + c])));
    absmax[i] = most;
  }
}
template <class To, class From>
__global__ void convert(To* to, const From* from, int64_t size) {
  EACH(i, size) to[i] = To(float(from[i]));
}

}  // namespace mmfree::int8_backward
