#include "core/cuda/common.cuh"
#include "core/ops/adamw.h"
#include "core/ops/elementwise.h"

namespace mmfree::cuda {
namespace {

constexpr int kThreads = 256;
/// Loads that a thread has in flight at a time.
constexpr int kBatch = 2;

template <class T>
struct Type {
  using type = T;
};

/// Calls body(Type<T>) with the GPU's type for a floating-point dtype.
template <class Body>
void dispatch_any_float(DType t, const char* op, Body&& body) {
  switch (t) {
    case DType::f64:
      return body(Type<double>());
    case DType::f32:
      return body(Type<float>());
    case DType::bf16:
      return body(Type<Bf16>());
    default:
      throw DTypeError(concat(op, ": expected f64, f32 or bf16, got ", name_of(t)));
  }
}

/// True if n elements at `p` can be accessed in packs of `width`.
template <class T>
bool fits(const void* p, int64_t n, int width) {
  const uintptr_t bytes = sizeof(T) * size_t(width);
  return n % width == 0 && reinterpret_cast<uintptr_t>(p) % (bytes < 16 ? bytes : 16) == 0;
}

/// Calls body(i) for each pack of the calling thread.
template <class Body>
__device__ void for_batch(int64_t packs, Body&& body) {
  const int64_t first = int64_t(blockIdx.x) * kThreads * kBatch + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kBatch; ++i)
    if (first + i * kThreads < packs) body(i, first + i * kThreads);
}

unsigned blocks(int64_t packs) { return unsigned(ceil_div(packs, kThreads * kBatch)); }

template <int N, class A, class B, class Y>
__global__ void __launch_bounds__(kThreads) add_packs(const A* a, const B* b, Y* y, int64_t packs) {
  begin_kernel();
  float left[kBatch][N], right[kBatch][N];
  for_batch(packs, [&](int i, int64_t at) {
    load<N>(left[i], a + at * N);
    load<N>(right[i], b + at * N);
  });
  for_batch(packs, [&](int i, int64_t at) {
#pragma unroll
    for (int k = 0; k < N; ++k) left[i][k] += right[i][k];
    store<N>(y + at * N, left[i]);
  });
}

template <class To, class From>
__device__ To convert(From x) {
  if constexpr (std::is_same_v<To, From>)
    return x;
  else if constexpr (std::is_same_v<To, Bf16>)
    return __float2bfloat16_rn(float(x));
  else if constexpr (std::is_same_v<From, Bf16>)
    return To(__bfloat162float(x));
  else
    return To(x);
}

template <int N, class From, class To>
__global__ void __launch_bounds__(kThreads) cast_packs(const From* from, To* to, int64_t packs) {
  begin_kernel();
  Pack<From, N> x[kBatch];
  for_batch(packs, [&](int i, int64_t at) { x[i] = reinterpret_cast<const Pack<From, N>*>(from)[at]; });
  for_batch(packs, [&](int i, int64_t at) {
    Pack<To, N> y;
#pragma unroll
    for (int k = 0; k < N; ++k) y.at[k] = convert<To>(x[i].at[k]);
    reinterpret_cast<Pack<To, N>*>(to)[at] = y;
  });
}

template <int N, class T>
__global__ void __launch_bounds__(kThreads) fill_packs(T* y, double value, int64_t packs) {
  begin_kernel();
  Pack<T, N> pack;
#pragma unroll
  for (int k = 0; k < N; ++k) pack.at[k] = convert<T>(value);
  for_batch(packs, [&](int, int64_t at) { reinterpret_cast<Pack<T, N>*>(y)[at] = pack; });
}

/// Sum over a block of threads, in thread 0: lanes pairwise, then warps in order.
template <int kWarps>
__device__ double block_sum(double x) {
  __shared__ double warps[kWarps];
  x = warp_sum(x);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = x;
  __syncthreads();
  double all = warps[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) all += warps[w];
  return all;
}

/// partials[block] = Σ of x, or of x², over kParamBlock elements: per thread in order, then over the block.
template <int N, bool kSquares, class T>
__global__ void __launch_bounds__(kThreads) sum_blocks(const T* x, double* partials, int64_t packs) {
  begin_kernel();
  constexpr int kPacks = int(kParamBlock) / (kThreads * N);
  const int64_t first = int64_t(blockIdx.x) * (kParamBlock / N) + threadIdx.x;
  Pack<T, N> at[kPacks];
#pragma unroll
  for (int i = 0; i < kPacks; ++i)
    if (first + i * kThreads < packs) at[i] = reinterpret_cast<const Pack<T, N>*>(x)[first + i * kThreads];
  double sum = 0;
#pragma unroll
  for (int i = 0; i < kPacks; ++i)
    if (first + i * kThreads < packs)
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const double value = convert<double>(at[i].at[k]);
        sum += kSquares ? value * value : value;
      }
  sum = block_sum<kThreads / kWarp>(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

constexpr int kTotalThreads = 1024;

/// out = beta·out + scale·factor·Σ partials (factor null: 1), added in an order that depends on their number alone.
__global__ void __launch_bounds__(kTotalThreads)
    add_partials(const double* partials, int64_t count, double scale, double beta, const double* factor, double* out) {
  begin_kernel();
  double sum = 0;
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < count; i += kTotalThreads) sum += partials[i];
  sum = block_sum<kTotalThreads / kWarp>(sum);
  if (threadIdx.x != 0) return;
  if (factor) scale = __dmul_rn(scale, *factor);
  *out = __dadd_rn(beta == 0 ? 0 : __dmul_rn(beta, *out), __dmul_rn(scale, sum));
}

template <bool kSquares>
void reduce(const SumArgs& g, const char* op) {
  const int64_t count = ceil_div(g.n, kParamBlock);
  Tensor partials({count}, DType::f64, Device::cuda);
  if (count > 0)
    dispatch_any_float(g.dtype, op, [&]<class T>(Type<T>) {
      const T* x = static_cast<const T*>(g.x);
      if (fits<T>(x, g.n, 4))
        launch_kernel(sum_blocks<4, kSquares, T>, {unsigned(count), kThreads}, x, partials.mut<double>(), g.n / 4);
      else
        launch_kernel(sum_blocks<1, kSquares, T>, {unsigned(count), kThreads}, x, partials.mut<double>(), g.n);
      check_launch(op);
    });
  launch_kernel(add_partials, {1, kTotalThreads}, partials.data<double>(), count, g.scale, g.beta, g.factor, g.out);
  check_launch(op);
}

}  // namespace

void add(const ElementwiseArgs& g) {
  if (g.n == 0) return;
  dispatch_activation(g.type_a, "add", [&]<class A>() {
    dispatch_activation(g.type_b, "add", [&]<class B>() {
      dispatch_activation(g.type_y, "add", [&]<class Y>() {
        const A* a = static_cast<const A*>(g.a);
        const B* b = static_cast<const B*>(g.b);
        Y* y = static_cast<Y*>(g.y);
        if (fits<A>(a, g.n, 4) && fits<B>(b, g.n, 4) && fits<Y>(y, g.n, 4))
          launch_kernel(add_packs<4, A, B, Y>, {blocks(g.n / 4), kThreads}, a, b, y, g.n / 4);
        else
          launch_kernel(add_packs<1, A, B, Y>, {blocks(g.n), kThreads}, a, b, y, g.n);
      });
    });
  });
  check_launch("add");
}

void cast(const ElementwiseArgs& g) {
  if (g.n == 0) return;
  dispatch_any_float(g.type_a, "cast", [&]<class From>(Type<From>) {
    dispatch_any_float(g.type_y, "cast", [&]<class To>(Type<To>) {
      const From* from = static_cast<const From*>(g.a);
      To* to = static_cast<To*>(g.y);
      if (fits<From>(from, g.n, 4) && fits<To>(to, g.n, 4))
        launch_kernel(cast_packs<4, From, To>, {blocks(g.n / 4), kThreads}, from, to, g.n / 4);
      else
        launch_kernel(cast_packs<1, From, To>, {blocks(g.n), kThreads}, from, to, g.n);
    });
  });
  check_launch("cast");
}

void fill(const FillArgs& g) {
  if (g.n == 0) return;
  dispatch_any_float(g.dtype, "fill", [&]<class T>(Type<T>) {
    constexpr int kWide = 16 / int(sizeof(T));
    T* y = static_cast<T*>(g.y);
    if (fits<T>(y, g.n, kWide))
      launch_kernel(fill_packs<kWide, T>, {blocks(g.n / kWide), kThreads}, y, g.value, g.n / kWide);
    else
      launch_kernel(fill_packs<1, T>, {blocks(g.n), kThreads}, y, g.value, g.n);
  });
  check_launch("fill");
}

void sum(const SumArgs& g) { reduce<false>(g, "sum"); }

void sum_of_squares(const SumArgs& g) { reduce<true>(g, "sum_of_squares"); }

}  // namespace mmfree::cuda
