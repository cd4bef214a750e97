#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "core/cuda/common.cuh"
#include "core/ops/embedding.h"

namespace mmfree::cuda {
namespace {

constexpr int kThreads = 256;

/// One warp per row, kBatch loads in flight per thread.
template <int N>
__global__ void __launch_bounds__(kThreads) gather(EmbeddingArgs g) {
  constexpr int kBatch = 4;
  begin_kernel();
  const int64_t row = int64_t(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= g.n) return;
  const int32_t id = g.ids[row];
  const bool known = id >= 0 && id < g.v;
  const float* from = static_cast<const float*>(g.in) + (known ? id : 0) * g.d;
  float* to = static_cast<float*>(g.out) + row * g.d;
  for (int64_t first = threadIdx.x % kWarp * N; first < g.d; first += kBatch * kWarp * N) {
    float x[kBatch][N];
#pragma unroll
    for (int i = 0; i < kBatch; ++i)
      if (first + i * kWarp * N < g.d) load<N>(x[i], from + first + i * kWarp * N);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
#pragma unroll
      for (int k = 0; k < N; ++k) x[i][k] = known ? x[i][k] : __int_as_float(0x7fc00000);
      if (first + i * kWarp * N < g.d) store<N>(to + first + i * kWarp * N, x[i]);
    }
  }
}

// Backward. The positions are sorted by id, so the positions of an id are one run. A block sums one segment of kSegment
// sorted positions. The sum of a run that lies inside a segment is added to the table. A run that crosses segments
// leaves a partial sum in each (`tails` in the first, `heads` in the others); a second kernel, in the block of the
// first segment, adds these in order.

constexpr int kSegment = 32;

/// The sorted positions, and the partial sums of runs that cross segments.
struct Runs {
  const uint32_t* keys;  // sorted ids, `ignored` for those outside the table
  const int32_t* positions;
  // [segments, D] each: of the run that continues from the segment before; of the run that starts here and goes on.
  float *heads, *tails;
  int64_t n, d, segments;
  uint32_t ignored;
};

__global__ void number(const int32_t* ids, uint32_t* keys, int32_t* positions, int64_t n, uint32_t ignored) {
  begin_kernel();
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n) return;
  keys[i] = min(uint32_t(ids[i]), ignored);
  positions[i] = int32_t(i);
}

__global__ void scale_table(float* table, int64_t n, float beta) {
  begin_kernel();
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) table[i] *= beta;
}

template <int N>
__device__ void add_to(float* to, const float (&x)[N]) {
  float sum[N];
  load<N>(sum, to);
#pragma unroll
  for (int k = 0; k < N; ++k) sum[k] += x[k];
  store<N>(to, sum);
}

/// Threads of a block are columns; blockIdx.y counts blocks of columns.
template <class A, int N>
__global__ void __launch_bounds__(kThreads) add_segments(const A* dy, float* table, Runs g) {
  __shared__ uint32_t keys[kSegment + 2];  // with one neighbour on each side; `ignored` where there is none
  __shared__ int32_t positions[kSegment];
  begin_kernel();
  const int64_t first = int64_t(blockIdx.x) * kSegment;
  if (threadIdx.x < kSegment + 2) {
    const int64_t i = first + threadIdx.x - 1;
    keys[threadIdx.x] = i >= 0 && i < g.n ? g.keys[i] : g.ignored;
    if (threadIdx.x < kSegment)
      positions[threadIdx.x] = first + threadIdx.x < g.n ? g.positions[first + threadIdx.x] : 0;
  }
  __syncthreads();
  const int64_t column = (int64_t(blockIdx.y) * kThreads + threadIdx.x) * N;
  if (column >= g.d) return;
  float sum[N] = {};
  bool from_before = keys[0] == keys[1];
  constexpr int kBatch = 8;
  for (int begin = 0; begin < kSegment && keys[begin + 1] != g.ignored; begin += kBatch) {
    float x[kBatch][N];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) load<N>(x[i], dy + positions[begin + i] * g.d + column);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int at = begin + i + 1;
      const uint32_t key = keys[at];
      if (key == g.ignored) return;
#pragma unroll
      for (int k = 0; k < N; ++k) sum[k] += x[i][k];
      if (keys[at + 1] == key && at < kSegment) continue;
      if (from_before)
        store<N>(g.heads + blockIdx.x * g.d + column, sum);
      else if (keys[at + 1] == key)
        store<N>(g.tails + blockIdx.x * g.d + column, sum);
      else
        add_to<N>(table + key * g.d + column, sum);
      from_before = false;
#pragma unroll
      for (int k = 0; k < N; ++k) sum[k] = 0;
    }
  }
}

/// Number of segments after `segment` into which the run of `key` continues; called by whole warps.
__device__ int64_t followers(const Runs& g, int64_t segment, uint32_t key) {
  int64_t count = 0;
  while (true) {
    const int64_t next = segment + 1 + count + threadIdx.x % kWarp;
    const unsigned others = ~__ballot_sync(0xffffffffu, next < g.segments && g.keys[next * kSegment] == key);
    if (others) return count + __ffs(int(others)) - 1;
    count += kWarp;
  }
}

template <int N>
__global__ void __launch_bounds__(kThreads) add_parts(float* table, Runs g) {
  begin_kernel();
  const int64_t segment = blockIdx.x, first = segment * kSegment, last = first + kSegment - 1;
  if (last + 1 >= g.n) return;
  const uint32_t key = g.keys[last];
  const bool starts_here = first == 0 || g.keys[first - 1] != key;
  if (key == g.ignored || g.keys[last + 1] != key || !starts_here) return;
  const int64_t count = followers(g, segment, key);
  const int64_t column = (int64_t(blockIdx.y) * kThreads + threadIdx.x) * N;
  if (column >= g.d) return;
  float sum[N];
  load<N>(sum, g.tails + segment * g.d + column);
#pragma unroll 8
  for (int64_t i = 1; i <= count; ++i) {
    float part[N];
    load<N>(part, g.heads + (segment + i) * g.d + column);
#pragma unroll
    for (int k = 0; k < N; ++k) sum[k] += part[k];
  }
  add_to<N>(table + key * g.d + column, sum);
}

/// Blocks of one thread per item.
unsigned blocks(int64_t n) { return unsigned(ceil_div(n, kThreads)); }

/// The ids with their positions, sorted by id and within an id by position.
struct Sorted {
  Tensor keys, positions;
};

Sorted sort(const EmbeddingArgs& g) {
  const auto ints = [&] { return Tensor({g.n}, DType::i32, Device::cuda); };
  Tensor unsorted_keys = ints(), unsorted_positions = ints();
  Sorted to{ints(), ints()};
  const auto keys_of = [](Tensor& t) { return reinterpret_cast<uint32_t*>(t.mut<int32_t>()); };
  launch_kernel(number, {blocks(g.n), kThreads}, g.ids, keys_of(unsorted_keys), unsorted_positions.mut<int32_t>(), g.n,
                uint32_t(g.v));
  check_launch("embedding_backward");
  size_t bytes = 0;
  const auto sort_pairs = [&](void* scratch) {
    MMFREE_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(scratch, bytes, keys_of(unsorted_keys), keys_of(to.keys),
                                                      unsorted_positions.mut<int32_t>(), to.positions.mut<int32_t>(),
                                                      int(g.n), 0, std::bit_width(uint32_t(g.v)), stream()));
  };
  sort_pairs(nullptr);
  Tensor scratch({int64_t(bytes)}, DType::u8, Device::cuda);
  sort_pairs(scratch.raw_mut());
  check_launch("embedding_backward");
  return to;
}

template <class A, int N>
void add_rows(const EmbeddingArgs& g, const Sorted& sorted) {
  const int64_t segments = ceil_div(g.n, kSegment);
  Tensor parts({2, segments, g.d}, DType::f32, Device::cuda);
  float *heads = parts.mut<float>(), *tails = heads + segments * g.d, *table = static_cast<float*>(g.out);
  const Runs runs{reinterpret_cast<const uint32_t*>(sorted.keys.data<int32_t>()),
                  sorted.positions.data<int32_t>(),
                  heads,
                  tails,
                  g.n,
                  g.d,
                  segments,
                  uint32_t(g.v)};
  const dim3 grid(unsigned(segments), unsigned(ceil_div(g.d, kThreads * N)));
  launch_kernel(add_segments<A, N>, {grid, kThreads}, static_cast<const A*>(g.in), table, runs);
  check_launch("embedding_backward");
  launch_kernel(add_parts<N>, {grid, kThreads}, table, runs);
  check_launch("embedding_backward");
}

}  // namespace

void embedding(const EmbeddingArgs& g) {
  MMFREE_CHECK(DTypeError, g.dtype == DType::f32, "embedding: expected an f32 table on a GPU, got ", name_of(g.dtype));
  if (g.n * g.d == 0) return;
  launch_kernel(g.d % 4 ? gather<1> : gather<4>, {unsigned(ceil_div(g.n, kThreads / kWarp)), kThreads}, g);
  check_launch("embedding");
}

void embedding_backward(const EmbeddingArgs& g) {
  float* table = static_cast<float*>(g.out);
  if (g.v * g.d == 0) return;
  if (g.beta == 0) {
    MMFREE_CUDA_CHECK(cudaMemsetAsync(table, 0, size_t(g.v * g.d) * sizeof(float), stream()));
  } else if (g.beta != 1) {
    launch_kernel(scale_table, {blocks(g.v * g.d), kThreads}, table, g.v * g.d, float(g.beta));
    check_launch("embedding_backward");
  }
  if (g.n == 0) return;
  const Sorted sorted = sort(g);
  dispatch_activation(g.dtype, "embedding_backward", [&]<class A>() {
    if (g.d % 4)
      add_rows<A, 1>(g, sorted);
    else
      add_rows<A, 4>(g, sorted);
  });
}

}  // namespace mmfree::cuda
