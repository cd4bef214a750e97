#include "core/cuda/common.cuh"
#include "core/ops/head_loss.h"

namespace mmfree::cuda {
namespace {

constexpr int kThreads = 512;
/// Accesses of 16 bytes that a thread keeps in registers. A block keeps 64 KiB, so a row of up to 32,768 bf16 logits is
/// read once. The rest of a longer row is read again, from the L2 cache.
constexpr int kHeld = 8;

/// One access: up to 16 bytes in whole registers.
template <class A, int N>
struct Access {
  using Word = std::conditional_t < sizeof(A) * N<4, uint16_t, uint32_t>;
  static constexpr int kWords = sizeof(A) * N / sizeof(Word);
  Pack<Word, kWords> words;

  static __device__ Access lowest() {
    Access a;
#pragma unroll
    for (Word& w : a.words.at) w = Word(std::is_same_v<A, float> ? 0xff800000u : 0xff80ff80u);  // -inf
    return a;
  }
  __device__ float at(int k) const {
    if constexpr (std::is_same_v<A, float>) return __uint_as_float(words.at[k]);
    return __uint_as_float(k % 2 ? words.at[k / 2] & 0xffff0000u : uint32_t(words.at[k / 2]) << 16);
  }
};

__device__ float warp_largest(float x) {
#pragma unroll
  for (int width = kWarp / 2; width; width /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, width));
  return x;
}

/// Combines the warps' results in order; every thread gets the same bits.
template <class Combine>
__device__ float across_warps(float x, Combine&& combine) {
  __shared__ float warps[kThreads / kWarp];
  __syncthreads();  // all threads have read the values of the last call
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = x;
  __syncthreads();
  float all = warps[0];
#pragma unroll
  for (int w = 1; w < kThreads / kWarp; ++w) all = combine(all, warps[w]);
  return all;
}

/// A thread's part of a row, in accesses of N elements.
template <class A, int N>
struct Row {
  A* data;
  int accesses;
  Access<A, N> held[kHeld];

  __device__ Access<A, N> at(int i) const { return reinterpret_cast<const Access<A, N>*>(data)[i]; }
  /// Elements beyond the end of the row are -inf, which changes neither the maximum nor the sum.
  __device__ void read() {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      held[i] = Access<A, N>::lowest();
      if (const int index = threadIdx.x + i * kThreads; index < accesses) held[i] = at(index);
    }
  }
  /// Calls body(elements, index of the access).
  template <class Body>
  __device__ void each(Body&& body) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) body(held[i], threadIdx.x + i * kThreads);
    for (int i = threadIdx.x + kHeld * kThreads; i < accesses; i += kThreads) body(at(i), i);
  }
};

template <class A, int N>
__device__ void write_zeros(Row<A, N>& row) {
  const float zeros[N] = {};
  for (int at = threadIdx.x; at < row.accesses; at += kThreads) store<N>(row.data + int64_t(at) * N, zeros);
}

/// One block per row.
template <class A, int N>
__global__ void __launch_bounds__(kThreads, 2) softmax(SoftmaxNllArgs g) {
  begin_kernel();
  const int64_t n = blockIdx.x;
  Row<A, N> row{static_cast<A*>(g.logits) + n * g.v, int(g.v / N)};
  float* nll = static_cast<float*>(g.nll) + n;
  const int target = g.targets[n];
  if (target == kIgnoreTarget) {
    if (threadIdx.x == 0) *nll = 0;
    if (g.gradient) write_zeros(row);
    return;
  }
  row.read();
  const bool known = target >= 0 && target < g.v;
  const float nan = __int_as_float(0x7fc00000);
  const float hit = known ? to_float(row.data[target]) : nan;
  float largest = -__int_as_float(0x7f800000);
  row.each([&](const Access<A, N>& x, int) {
#pragma unroll
    for (int k = 0; k < N; ++k) largest = fmaxf(largest, x.at(k));
  });
  largest = across_warps(warp_largest(largest), [](float a, float b) { return fmaxf(a, b); });
  float sum = 0;
  row.each([&](const Access<A, N>& x, int) {
#pragma unroll
    for (int k = 0; k < N; ++k) sum += exponential<A>(x.at(k) - largest);
  });
  sum = across_warps(warp_sum(sum), [](float a, float b) { return a + b; });
  if (threadIdx.x == 0) *nll = logf(sum) + largest - hit;
  if (!g.gradient) return;
  const float scale = known ? float(*g.scale) : nan, factor = scale / sum;
  asm volatile("" : "+f"(largest));  // makes the compiler compute the exponentials again; keeping them would spill
  row.each([&](const Access<A, N>& x, int at) {
    if (at >= row.accesses) return;
    float out[N];
#pragma unroll
    for (int k = 0; k < N; ++k) out[k] = exponential<A>(x.at(k) - largest) * factor;
    if (at == target / N)
#pragma unroll
      for (int k = 0; k < N; ++k) out[k] -= k == target % N ? scale : 0;
    store<N>(row.data + int64_t(at) * N, out);
  });
}

}  // namespace

void softmax_nll(const SoftmaxNllArgs& g) {
  if (g.n == 0) return;
  dispatch_activation(g.dtype, "head_loss", [&]<class A>() {
    constexpr int kWide = 16 / int(sizeof(A));
    launch_kernel(g.v % kWide ? softmax<A, 1> : softmax<A, kWide>, {unsigned(g.n), kThreads}, g);
  });
  check_launch("head_loss");
}

}  // namespace mmfree::cuda
