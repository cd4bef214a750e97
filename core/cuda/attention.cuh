#pragma once
#include <climits>

#include "core/cuda/common.cuh"
#include "core/ops/attention.h"

/// What the plain attention kernels share. Each block keeps kM rows in shared memory, in float, and streams tiles of kN
/// rows beside them. Key indices count from the first key of the call; query t has its own key at t + S − T.
namespace mmfree::cuda {

/// The widest head.
inline constexpr int64_t kWidest = 512;
/// Up to this many queries a sequence are computed by `attend_few`, a block for each query and head.
inline constexpr int64_t kFewQueries = 8;
void attend_few(const AttentionArgs&);

namespace tiles {

constexpr int kSide = 16, kThreads = kSide * kSide;
constexpr float kLog2e = 1.44269504f, kLn2 = 0.69314718f;

/// Sizes for heads of up to kWidth numbers. Two tiles of kM rows, one of kN rows and the products fit 99 KiB of shared
/// memory, and a row's part of an output fits 32 registers.
template <int kWidth>
struct Tile {
  static constexpr int kM = kWidth <= 128 ? 64 : kWidth <= 256 ? 32 : 16;
  static constexpr int kN = kWidth <= 64 ? 64 : kWidth <= 128 ? 32 : 16;
  static constexpr int kRows = kM / kSide, kColumns = kN / kSide;  ///< of a thread
  static constexpr int kVectors = kWidth / (4 * kSide);            ///< of 4 columns, of a thread's part of an output
  static constexpr int kStride = kWidth + 4, kProductStride = kN + 4;  ///< of shared memory, without bank conflicts
};

/// The thread's place: rows ty, ty + 16, ..., columns tx, tx + 16, ... of a product of tiles, and columns 4 tx .. 4 tx
/// + 3, 64 + 4 tx .. of an output.
template <class L>
struct Thread {
  int tx = threadIdx.x % kSide, ty = threadIdx.x / kSide;
  __device__ int row(int r) const { return ty + kSide * r; }
  __device__ int column(int c) const { return tx + kSide * c; }
  __device__ int output(int v) const { return 4 * (tx + kSide * v); }
};

/// What a block computes: rows from `begin` on of a head of a sequence.
struct Block {
  int64_t sequence, head, begin;
  __device__ Block(int64_t sequence, int64_t head, int64_t begin) : sequence(sequence), head(head), begin(begin) {}
  /// By the block's index. Later queries see more keys, earlier keys are seen by more queries: the tiles that take
  /// longest come first.
  __device__ Block(const AttentionArgs& g, int rows, int64_t heads, int64_t t, bool last_first = true) {
    const int64_t tiles = (t + rows - 1) / rows, tile = blockIdx.x / (g.b * heads), rest = blockIdx.x % (g.b * heads);
    sequence = rest / heads;
    head = rest % heads;
    begin = (last_first ? tiles - 1 - tile : tile) * rows;
  }
};

/// Keys and values of a head of a sequence. Rows are `stride` numbers apart.
template <class A>
struct Keys {
  const A *k, *v;
  int64_t stride;
  __device__ Keys(const AttentionArgs& g, int64_t sequence, int64_t head) : stride(g.kv_heads * g.width) {
    const int64_t at = sequence * g.capacity * stride + head * g.width;
    k = static_cast<const A*>(g.k) + at;
    v = static_cast<const A*>(g.v) + at;
  }
};

/// The first row of a block in an array [B, T, H, W].
template <class A>
__device__ const A* query(const AttentionArgs& g, const void* of, const Block& at) {
  return static_cast<const A*>(of) + ((at.sequence * g.t + at.begin) * g.heads + at.head) * g.width;
}
template <class A>
__device__ A* query(const AttentionArgs& g, void* of, const Block& at) {
  return static_cast<A*>(of) + ((at.sequence * g.t + at.begin) * g.heads + at.head) * g.width;
}
/// The place of the first row of a block in an array [B, H, T].
__device__ inline int64_t statistic(const AttentionArgs& g, const Block& at) {
  return (at.sequence * g.heads + at.head) * g.t + at.begin;
}

/// The first key that query t of a sequence sees.
__device__ inline int lowest_key(const AttentionArgs& g, int64_t sequence, int64_t t) {
  int64_t low = 0;
  if (g.begins) low = max(low, g.begins[sequence * g.t + t] - (g.first + g.t - g.keys));
  if (g.window) low = max(low, t + g.keys - g.t - g.window + 1);
  return int(low);
}
/// That of `kCount` queries; beyond the last query no key.
template <int kCount>
__device__ void load_lowest(int* to, const AttentionArgs& g, int64_t sequence, int64_t begin) {
  for (int i = threadIdx.x; i < kCount; i += kThreads)
    to[i] = begin + i < g.t ? lowest_key(g, sequence, begin + i) : INT_MAX;
}
template <int kCount>
__device__ int smallest(const int* of) {
  int least = INT_MAX;
  for (int i = 0; i < kCount; ++i) least = min(least, of[i]);
  return least;
}

/// Rows to shared memory, kStride apart there and `stride` numbers apart in `from`; zeros beyond the first `count`.
template <class A, int kRows, int kStride>
__device__ void load_rows(float* to, const A* from, int64_t stride, int64_t count, int64_t width) {
  const int parts = int(width / 8);
  for (int i = threadIdx.x; i < kRows * parts; i += kThreads) {
    const int row = i / parts, part = i % parts * 8;
    float values[8] = {};
    if (row < count) load(values, from + row * stride + part);
    store(to + row * kStride + part, values);
  }
}

/// sums[r][c] += a[row r] · b[row c], over `width` numbers.
template <class L>
__device__ void add_row_products(float (&sums)[L::kRows][L::kColumns], const float* a, const float* b, int64_t width,
                                 const Thread<L>& me) {
  for (int w = 0; w < int(width); w += 4) {
    float4 x[L::kRows], y[L::kColumns];
#pragma unroll
    for (int r = 0; r < L::kRows; ++r) x[r] = *reinterpret_cast<const float4*>(a + me.row(r) * L::kStride + w);
#pragma unroll
    for (int c = 0; c < L::kColumns; ++c) y[c] = *reinterpret_cast<const float4*>(b + me.column(c) * L::kStride + w);
#pragma unroll
    for (int r = 0; r < L::kRows; ++r)
#pragma unroll
      for (int c = 0; c < L::kColumns; ++c) {
        float& sum = sums[r][c];
        sum = fmaf(x[r].x, y[c].x, sum), sum = fmaf(x[r].y, y[c].y, sum);
        sum = fmaf(x[r].z, y[c].z, sum), sum = fmaf(x[r].w, y[c].w, sum);
      }
  }
}

/// sums[r] += Σ_j p[row r][j] b[row j], over the kN rows of b.
template <class L>
__device__ void add_column_products(float4 (&sums)[L::kRows][L::kVectors], const float* p, const float* b,
                                    int64_t width, const Thread<L>& me) {
#pragma unroll 4
  for (int j = 0; j < L::kN; ++j) {
    float weight[L::kRows];
#pragma unroll
    for (int r = 0; r < L::kRows; ++r) weight[r] = p[me.row(r) * L::kProductStride + j];
#pragma unroll
    for (int v = 0; v < L::kVectors; ++v) {
      if (me.output(v) >= width) continue;
      const float4 y = *reinterpret_cast<const float4*>(b + j * L::kStride + me.output(v));
#pragma unroll
      for (int r = 0; r < L::kRows; ++r) {
        float4& sum = sums[r][v];
        sum.x = fmaf(weight[r], y.x, sum.x), sum.y = fmaf(weight[r], y.y, sum.y);
        sum.z = fmaf(weight[r], y.z, sum.z), sum.w = fmaf(weight[r], y.w, sum.w);
      }
    }
  }
}

/// Over the 16 threads that share a row.
__device__ inline float row_max(float x) {
#pragma unroll
  for (int width = kSide / 2; width; width /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, width));
  return x;
}
__device__ inline float row_sum(float x) {
#pragma unroll
  for (int width = kSide / 2; width; width /= 2) x += __shfl_xor_sync(0xffffffffu, x, width);
  return x;
}

/// Stores a row of an output, times `scale`.
template <class L, class A>
__device__ void store_row(A* to, const float4 (&row)[L::kVectors], float scale, int64_t width, const Thread<L>& me) {
#pragma unroll
  for (int v = 0; v < L::kVectors; ++v) {
    if (me.output(v) >= width) continue;
    const float values[4] = {row[v].x * scale, row[v].y * scale, row[v].z * scale, row[v].w * scale};
    store(to + me.output(v), values);
  }
}

}  // namespace tiles
}  // namespace mmfree::cuda
