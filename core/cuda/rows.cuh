#pragma once
#include <array>
#include <atomic>

#include "core/cuda/common.cuh"
#include "core/quantize.h"

/// What kernels over rows share. A block processes one row at a time. The grid is persistent: it has at most as many
/// blocks as run at the same time, and they process all rows.
namespace mmfree::cuda {

/// W elements, loaded in accesses of up to 16 bytes. A pair of bf16 is in one register until it is used.
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
  /// Makes the compiler compute values of these words again instead of keeping them in registers.
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

/// Calls body(v, column) for each vector of kWidth columns of this thread in a row of d columns. With kVectors > 0
/// there are at most kVectors, and arrays indexed by v stay in registers. With kVectors == 0 there are as many as the
/// row needs, and v is 0.
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

/// Reduces sums of floats and maxima of `magnitude`s over a block in a fixed order; every thread gets the results. It
/// is placed in shared memory. There is one barrier per call: two sets of slots alternate, so that a fast warp does not
/// overwrite values that a slow one still reads. With kThreads the first kThreads threads of the block take part, whole
/// warps, and the others do not.
template <int kSums, int kMaxima, int kThreads = 0>
struct alignas(16) RowReduction {
  float slots[2][kSums + kMaxima][kWarp];

  static __device__ int threads() { return kThreads ? kThreads : int(blockDim.x); }
  /// A barrier of the threads that take part.
  static __device__ void wait() {
    if constexpr (kThreads)
      asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
    else
      __syncthreads();
  }

  /// All threads call this once, first: the slots of warps that the block does not have must be zero.
  __device__ void clear() {
    float* slot = &slots[0][0][0];
    for (int i = int(threadIdx.x); i < 2 * (kSums + kMaxima) * kWarp; i += threads()) slot[i] = 0;
    wait();
  }

  /// `turn` alternates between 0 and 1 from call to call.
  __device__ void operator()(int turn, float* sums, uint32_t* maxima) { add<kSums, kMaxima>(turn, sums, maxima); }
  /// The same of the first S sums and M maxima.
  template <int S, int M>
  __device__ void add(int turn, float* sums, uint32_t* maxima) {
#pragma unroll
    for (int i = 0; i < S; ++i) sums[i] = warp_sum(sums[i]);
#pragma unroll
    for (int i = 0; i < M; ++i) maxima[i] = __reduce_max_sync(0xffffffffu, maxima[i]);
    if (threads() == kWarp) return;
    auto& slot = slots[turn];
    if (threadIdx.x % kWarp == 0) {
#pragma unroll
      for (int i = 0; i < S; ++i) slot[i][threadIdx.x / kWarp] = sums[i];
#pragma unroll
      for (int i = 0; i < M; ++i) slot[S + i][threadIdx.x / kWarp] = __uint_as_float(maxima[i]);
    }
    wait();
#pragma unroll
    for (int i = 0; i < S; ++i) sums[i] = 0;
    for (int warp = 0; warp < threads() / kWarp; warp += 4) {
#pragma unroll
      for (int i = 0; i < S; ++i) {
        const auto four = *reinterpret_cast<const Pack<float, 4>*>(&slot[i][warp]);
        sums[i] += (four.at[0] + four.at[1]) + (four.at[2] + four.at[3]);
      }
    }
#pragma unroll
    for (int i = 0; i < M; ++i)
      maxima[i] = __reduce_max_sync(0xffffffffu, __float_as_uint(slot[S + i][threadIdx.x % kWarp]));
  }
};

/// rstd: 1 / sqrt(mean + eps). If the mean overflowed it is NaN: 0 would turn the row into zeros silently.
__device__ inline float rms_reciprocal(float mean, float eps) {
  return magnitude(mean) < 0x7f800000u ? rsqrtf(mean + eps) : __uint_as_float(0x7fffffffu);
}

/// Number of threads for `vectors` vectors: whole warps, at most `most`.
inline int threads_for(int64_t vectors, int most) {
  return int(std::min<int64_t>(ceil_div(vectors, kWarp) * kWarp, most));
}

/// Number of blocks of a persistent grid over `rows` rows: at most as many as an idle GPU runs at the same time.
/// `shared`, the bytes of dynamic shared memory, must follow from `threads`.
template <auto kKernel>
int64_t persistent_blocks(int threads, int64_t rows, size_t shared = 0) {
  static std::array<std::atomic<int>, 1024 / kWarp + 1> known{};
  std::atomic<int>& per_multiprocessor = known[size_t(threads / kWarp)];
  if (per_multiprocessor == 0) {
    int blocks = 0;
    MMFREE_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kKernel, threads, shared));
    per_multiprocessor = std::max(blocks, 1);
  }
  return std::min<int64_t>(rows, int64_t(per_multiprocessor) * multiprocessors());
}

/// True if `p` is aligned to 16 bytes; also for null.
inline bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace mmfree::cuda
