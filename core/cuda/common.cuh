#pragma once
#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>

#include "core/activation.h"
#include "core/cuda/launch.cuh"
#include "core/dtype.h"

/// Building blocks of the CUDA kernels. Activations A are float or __nv_bfloat16; sums, norms and gates are computed in
/// float. Reductions combine lanes and warps in a fixed order.
namespace mmfree::cuda {

using Bf16 = __nv_bfloat16;  // the bits of mmfree::bf16

constexpr int kWarp = 32;

/// Calls `body.operator()<A>()` with A = float or Bf16; any other dtype is a DTypeError naming `op`.
template <class Body>
void dispatch_activation(DType t, const char* op, Body&& body) {
  if (t == DType::f32) return body.template operator()<float>();
  if (t == DType::bf16) return body.template operator()<Bf16>();
  throw DTypeError(concat(op, ": expected f32 or bf16 on a GPU, got ", name_of(t)));
}

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(Bf16 x) { return __bfloat162float(x); }
template <class A>
__device__ inline A from_float(float x) {
  if constexpr (std::is_same_v<A, Bf16>)
    return __float2bfloat16_rn(x);
  else
    return x;
}

/// N elements that are loaded and stored as one access of up to 16 bytes.
template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
  T at[N];
};

/// N consecutive elements from `from`, which must be aligned to N elements (16 bytes at most), as floats.
template <int N, class T>
__device__ inline void load(float (&to)[N], const T* from) {
  const Pack<T, N> pack = *reinterpret_cast<const Pack<T, N>*>(from);
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = to_float(pack.at[i]);
}
/// Stores one vector by inline assembly, because the compiler splits some vector stores.
__device__ inline void store_word(uint4* to, uint4 word) {
  asm volatile("st.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w)
               : "memory");
}
__device__ inline void store_word(uint2* to, uint2 word) {
  asm volatile("st.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(word.x), "r"(word.y) : "memory");
}
template <class Word>
__device__ inline void store_word(Word* to, Word word) {
  *to = word;
}
template <size_t kBytes>
using Word =
    std::conditional_t<kBytes >= 16, uint4,
                       std::conditional_t<kBytes == 8, uint2, std::conditional_t<kBytes == 4, uint32_t, uint16_t>>>;

/// N consecutive elements to `to`, which must be aligned as for `load`.
template <int N, class T>
__device__ inline void store(T* to, const float (&from)[N]) {
  using Access = Word<sizeof(Pack<T, N>)>;
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) pack.at[i] = from_float<T>(from[i]);
#pragma unroll
  for (int i = 0; i < int(sizeof(pack) / sizeof(Access)); ++i)
    store_word(reinterpret_cast<Access*>(to) + i, reinterpret_cast<const Access*>(&pack)[i]);
}

/// e^x. With bf16 activations it uses the fast instruction: its error is far below the rounding to bf16. That
/// instruction flushes subnormal numbers to zero.
template <class A>
__device__ inline float exponential(float x) {
  if constexpr (std::is_same_v<A, Bf16>) {
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(x) : "f"(1.44269504f * x));
    return x;
  } else {
    return expf(x);
  }
}

/// σ(x), with the precision of `exponential`.
template <class A>
__device__ inline float sigmoid(float x) {
  const float y = 1.0f + exponential<A>(-x);
  if constexpr (std::is_same_v<A, Bf16>) {
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(x) : "f"(y));
    return x;
  } else {
    return 1.0f / y;
  }
}
/// The functions that core/activation.h takes from a backend, for activations A.
template <class A>
struct Maths {
  static __device__ float exp(float x) { return exponential<A>(x); }
  static __device__ float sigmoid(float x) { return cuda::sigmoid<A>(x); }
  static __device__ float erf(float x) { return erff(x); }
};

__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int width = kWarp / 2; width; width /= 2) x += __shfl_xor_sync(0xffffffffu, x, width);
  return x;
}
__device__ inline double warp_sum(double x) {
#pragma unroll
  for (int width = kWarp / 2; width; width /= 2) x += __shfl_xor_sync(0xffffffffu, x, width);
  return x;
}

/// The bits of |x|. Those of non-negative numbers have the order of the numbers, and NaN is above infinity, so a
/// maximum of magnitudes never loses a NaN.
__device__ inline uint32_t magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }
__device__ inline uint32_t warp_max(uint32_t x) {
#pragma unroll
  for (int width = kWarp / 2; width; width /= 2) x = max(x, __shfl_xor_sync(0xffffffffu, x, width));
  return x;
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace mmfree::cuda
