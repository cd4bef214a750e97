#pragma once
#include <array>
#include <atomic>

#include "core/cuda/common.cuh"
#include "core/quantize.h"

/// What the kernels that walk over rows share: a block takes one row at a time, a grid no larger than what the GPU
/// holds at once takes all rows.
namespace mmfree::cuda {

/// W elements as loaded, in one access of up to 16 bytes. Pairs of bf16 stay in one register until they are used.
template <class T, int W>
struct Loaded {
  static constexpr bool kPairs = std::is_same_v<T, Bf16> && W % 2 == 0;
  using Word = std::conditional_t<kPairs, uint32_t, T>;
  using Words = Pack<Word, kPairs ? W / 2 : W>;
  Words words;

  __device__ void load(const T* from) { words = *reinterpret_cast<const Words*>(from); }
  __device__ void clear() {
#pragma unroll
    for (Word& w : words.at) w = Word(0.0f);
  }
  /// Makes the compiler compute again what follows from these words, rather than hold it in registers.
  __device__ void forget() {
#pragma unroll
    for (Word& w : words.at)
      if constexpr (std::is_same_v<Word, float>)
        asm volatile("" : "+f"(w));
      else if constexpr (kPairs)
        asm volatile("" : "+r"(w));
  }
  __device__ float operator[](int i) const {
    if constexpr (kPairs)
      return __uint_as_float(i % 2 ? words.at[i / 2] & 0xffff0000u : words.at[i / 2] << 16);
    else
      return to_float(words.at[i]);
  }
};

/// Calls body(v, column) for each vector of kWidth columns that this thread owns in a row of d columns. With kVectors
/// they can be kept in registers, indexed by v < kVectors; with kVectors == 0 there are as many as the row needs and v
/// is 0.
template <int kVectors, int kWidth, class Body>
__device__ inline void each_vector(int64_t d, Body&& body) {
  if constexpr (kVectors > 0) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int column = (v * int(blockDim.x) + int(threadIdx.x)) * kWidth;
      if (column < d) body(v, column);
    }
  } else {
    for (int64_t column = int64_t(threadIdx.x) * kWidth; column < d; column += int64_t(blockDim.x) * kWidth)
      body(0, column);
  }
}

/// Sums of floats and maxima of `magnitude`s over a block, in a fixed order, for every thread. One barrier per call:
/// two sets of slots in turn keep a fast warp from overwriting what a slow one still reads. Lives in shared memory.
template <int kSums, int kMaxima>
struct alignas(16) RowReduction {
  float slots[2][kSums + kMaxima][kWarp];

  /// Call once, by all threads, before anything else: slots of absent warps must be zero.
  __device__ void clear() {
    float* slot = &slots[0][0][0];
    for (int i = int(threadIdx.x); i < 2 * (kSums + kMaxima) * kWarp; i += int(blockDim.x)) slot[i] = 0;
    __syncthreads();
  }

  /// `turn` alternates between 0 and 1 from call to call.
  __device__ void operator()(int turn, float* sums, uint32_t* maxima) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] = warp_sum(sums[i]);
#pragma unroll
    for (int i = 0; i < kMaxima; ++i) maxima[i] = __reduce_max_sync(0xffffffffu, maxima[i]);
    if (blockDim.x == kWarp) return;
    auto& slot = slots[turn];
    if (threadIdx.x % kWarp == 0) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) slot[i][threadIdx.x / kWarp] = sums[i];
#pragma unroll
      for (int i = 0; i < kMaxima; ++i) slot[kSums + i][threadIdx.x / kWarp] = __uint_as_float(maxima[i]);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] = 0;
    for (int warp = 0; warp < int(blockDim.x) / kWarp; warp += 4) {
#pragma unroll
      for (int i = 0; i < kSums + kMaxima; ++i) {
        const auto four = *reinterpret_cast<const Pack<float, 4>*>(&slot[i][warp]);
        if (i < kSums)
          sums[i] += (four.at[0] + four.at[1]) + (four.at[2] + four.at[3]);
        else
          maxima[i - kSums] = max(max(max(__float_as_uint(four.at[0]), __float_as_uint(four.at[1])),
                                      max(__float_as_uint(four.at[2]), __float_as_uint(four.at[3]))),
                                  maxima[i - kSums]);
      }
    }
  }
};

/// 1 / sqrt(mean + eps); NaN where the mean overflowed, which would otherwise make a row of zeros out of it.
__device__ inline float rms_reciprocal(float mean, float eps) {
  return magnitude(mean) < 0x7f800000u ? rsqrtf(mean + eps) : __uint_as_float(0x7fffffffu);
}

/// Threads for `vectors` vectors, in whole warps.
inline int threads_for(int64_t vectors, int most) {
  return int(std::min<int64_t>(ceil_div(vectors, kWarp) * kWarp, most));
}

/// Blocks for a grid that takes `rows` rows: as many as run at once, whatever the GPU is doing.
template <auto kKernel>
int64_t persistent_blocks(int threads, int64_t rows) {
  static std::array<std::atomic<int>, 1024 / kWarp + 1> known{};
  std::atomic<int>& per_multiprocessor = known[size_t(threads / kWarp)];
  if (per_multiprocessor == 0) {
    int blocks = 0;
    MMFREE_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kKernel, threads, 0));
    per_multiprocessor = std::max(blocks, 1);
  }
  return std::min<int64_t>(rows, int64_t(per_multiprocessor) * multiprocessors());
}

/// True if `p` may be accessed 16 bytes at a time; null pointers may.
inline bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace mmfree::cuda
