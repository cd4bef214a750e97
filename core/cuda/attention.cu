#include "core/cuda/attention.cuh"
#include "core/cuda/fused_attention.h"
#include "core/ops/attention.h"

namespace mmfree::cuda {
namespace {

using namespace tiles;

/// The exponentials of a row's scores, to base 2 and less the row's maximum so far, to `p`; their sum is added to
/// `sum`. Returns by what numbers for the maximum before must be multiplied.
template <class L>
__device__ float exponentials(const float (&s)[L::kColumns], float& most, float& sum, float* p, const Thread<L>& me) {
  float top = most;
#pragma unroll
  for (int c = 0; c < L::kColumns; ++c) top = fmaxf(top, s[c]);
  top = row_max(top);
  // A row that sees no key so far has no maximum: 0 stands for it, and every exponential below is 0.
  const float base = top == -INFINITY ? 0 : top, fade = exp2f(most - base);
  most = top;
  sum *= fade;
#pragma unroll
  for (int c = 0; c < L::kColumns; ++c) {
    const float e = exp2f(s[c] - base);
    sum += e;
    p[me.column(c)] = e;
  }
  return fade;
}

/// A block computes kM queries of one head.
template <class A, int kWidth>
__global__ void __launch_bounds__(kThreads) attend(AttentionArgs g) {
  begin_kernel();
  using L = Tile<kWidth>;
  extern __shared__ float4 memory[];
  float* const q = reinterpret_cast<float*>(memory);
  float* const kv = q + L::kM * L::kStride;
  float* const p = kv + L::kN * L::kStride;
  int* const lowest = reinterpret_cast<int*>(p + L::kM * L::kProductStride);
  const Block at(g, L::kM, g.heads, g.t);
  const Keys<A> keys(g, at.sequence, at.head * g.kv_heads / g.heads);
  const Thread<L> me;
  load_rows<A, L::kM, L::kStride>(q, query<A>(g, g.q, at), g.heads * g.width, g.t - at.begin, g.width);
  load_lowest<L::kM>(lowest, g, at.sequence, at.begin);
  __syncthreads();
  const int last = int(min(at.begin + L::kM, g.t) - 1 + g.keys - g.t);
  const float scale = rsqrtf(float(g.width)) * kLog2e;
  float most[L::kRows], sum[L::kRows] = {};
  float4 o[L::kRows][L::kVectors] = {};
  for (float& m : most) m = -INFINITY;
  for (int begin = smallest<L::kM>(lowest) / L::kN * L::kN; begin <= last; begin += L::kN) {
    load_rows<A, L::kN, L::kStride>(kv, keys.k + begin * keys.stride, keys.stride, g.keys - begin, g.width);
    __syncthreads();
    float s[L::kRows][L::kColumns] = {};
    add_row_products<L>(s, q, kv, g.width, me);
    __syncthreads();
    load_rows<A, L::kN, L::kStride>(kv, keys.v + begin * keys.stride, keys.stride, g.keys - begin, g.width);
#pragma unroll
    for (int r = 0; r < L::kRows; ++r) {
      const int own = int(at.begin + me.row(r) + g.keys - g.t), low = lowest[me.row(r)];
#pragma unroll
      for (int c = 0; c < L::kColumns; ++c) {
        const int key = begin + me.column(c);
        s[r][c] = low <= key && key <= own ? s[r][c] * scale : -INFINITY;
      }
      const float fade = exponentials<L>(s[r], most[r], sum[r], p + me.row(r) * L::kProductStride, me);
#pragma unroll
      for (float4& part : o[r]) part = {part.x * fade, part.y * fade, part.z * fade, part.w * fade};
    }
    __syncthreads();
    add_column_products<L>(o, p, kv, g.width, me);
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < L::kRows; ++r) {
    const float all = row_sum(sum[r]);
    const bool live = at.begin + me.row(r) < g.t;
    if (live) store_row<L>(query<A>(g, g.o, at) + me.row(r) * g.heads * g.width, o[r], 1 / all, g.width, me);
    if (live && g.lse && me.tx == 0)
      static_cast<float*>(g.lse)[statistic(g, at) + me.row(r)] = (most[r] + log2f(all)) * kLn2;
  }
}

/// dq: a block computes kM queries of one head. It leaves do·o of each in `delta` [B, H, T] for `attend_back_keys`.
template <class A, int kWidth>
__global__ void __launch_bounds__(kThreads) attend_back_queries(AttentionBackwardArgs g, float* delta) {
  begin_kernel();
  using L = Tile<kWidth>;
  extern __shared__ float4 memory[];
  float* const q = reinterpret_cast<float*>(memory);
  float* const dout = q + L::kM * L::kStride;
  float* const kv = dout + L::kM * L::kStride;
  float* const ds = kv + L::kN * L::kStride;
  int* const lowest = reinterpret_cast<int*>(ds + L::kM * L::kProductStride);
  const Block at(g, L::kM, g.heads, g.t);
  const Keys<A> keys(g, at.sequence, at.head * g.kv_heads / g.heads);
  const Thread<L> me;
  const int64_t stride = g.heads * g.width;
  load_rows<A, L::kM, L::kStride>(q, query<A>(g, g.q, at), stride, g.t - at.begin, g.width);
  load_rows<A, L::kM, L::kStride>(dout, query<A>(g, g.dout, at), stride, g.t - at.begin, g.width);
  load_lowest<L::kM>(lowest, g, at.sequence, at.begin);
  __syncthreads();
  float lse[L::kRows], mean[L::kRows];
#pragma unroll
  for (int r = 0; r < L::kRows; ++r) {
    const bool live = at.begin + me.row(r) < g.t;
    const A* o = query<A>(g, g.o, at) + me.row(r) * stride;
    float sum = 0;
    for (int w = me.tx; live && w < g.width; w += kSide) sum += to_float(o[w]) * dout[me.row(r) * L::kStride + w];
    mean[r] = row_sum(sum);
    lse[r] = live ? static_cast<const float*>(g.lse)[statistic(g, at) + me.row(r)] * kLog2e : 0;
    if (live && me.tx == 0) delta[statistic(g, at) + me.row(r)] = mean[r];
  }
  const int last = int(min(at.begin + L::kM, g.t) - 1 + g.keys - g.t);
  const float scale = rsqrtf(float(g.width));
  float4 dq[L::kRows][L::kVectors] = {};
  for (int begin = smallest<L::kM>(lowest) / L::kN * L::kN; begin <= last; begin += L::kN) {
    load_rows<A, L::kN, L::kStride>(kv, keys.v + begin * keys.stride, keys.stride, g.keys - begin, g.width);
    __syncthreads();
    float s[L::kRows][L::kColumns] = {}, dp[L::kRows][L::kColumns] = {};
    add_row_products<L>(dp, dout, kv, g.width, me);
    __syncthreads();
    load_rows<A, L::kN, L::kStride>(kv, keys.k + begin * keys.stride, keys.stride, g.keys - begin, g.width);
    __syncthreads();
    add_row_products<L>(s, q, kv, g.width, me);
#pragma unroll
    for (int r = 0; r < L::kRows; ++r) {
      const int own = int(at.begin + me.row(r) + g.keys - g.t), low = lowest[me.row(r)];
#pragma unroll
      for (int c = 0; c < L::kColumns; ++c) {
        const int key = begin + me.column(c);
        const float weight = low <= key && key <= own ? exp2f(s[r][c] * scale * kLog2e - lse[r]) : 0;
        ds[me.row(r) * L::kProductStride + me.column(c)] = weight == 0 ? 0 : weight * (dp[r][c] - mean[r]);
      }
    }
    __syncthreads();
    add_column_products<L>(dq, ds, kv, g.width, me);
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < L::kRows; ++r)
    if (at.begin + me.row(r) < g.t) store_row<L>(query<A>(g, g.dq, at) + me.row(r) * stride, dq[r], scale, g.width, me);
}

/// The first `count` of kCount numbers, times `scale`, to shared memory; zeros for the rest.
template <int kCount>
__device__ void load_statistics(float* to, const float* from, int64_t count, float scale) {
  for (int i = threadIdx.x; i < kCount; i += kThreads) to[i] = i < count ? from[i] * scale : 0;
}

/// What attend_back_keys has in shared memory: kM rows of keys and of values, kN rows of queries or of gradients, the
/// weights of each pair, and three numbers of each query.
template <class L>
struct BackKeysMemory {
  float *k, *v, *rows, *p;
  int* lowest;
  float *lse, *mean;
  __device__ explicit BackKeysMemory(float* at)
      : k(at),
        v(k + L::kM * L::kStride),
        rows(v + L::kM * L::kStride),
        p(rows + L::kN * L::kStride),
        lowest(reinterpret_cast<int*>(p + L::kM * L::kProductStride)),
        lse(reinterpret_cast<float*>(lowest + L::kN)),
        mean(lse + L::kN) {}
};

/// Of each pair the weight, to memory, and ds, in place of the product s: from the products s = q·k and dp = do·v.
/// `first_key` is the key of the first row, `first_own` that of the first query itself.
template <class L>
__device__ void weigh(float (&s)[L::kRows][L::kColumns], const float (&dp)[L::kRows][L::kColumns], float scale,
                      int first_key, int first_own, const BackKeysMemory<L>& m, const Thread<L>& me) {
#pragma unroll
  for (int r = 0; r < L::kRows; ++r)
#pragma unroll
    for (int c = 0; c < L::kColumns; ++c) {
      const int key = first_key + me.row(r), query = me.column(c);
      const bool sees = m.lowest[query] <= key && key <= first_own + query;
      const float weight = sees ? exp2f(s[r][c] * scale * kLog2e - m.lse[query]) : 0;
      m.p[me.row(r) * L::kProductStride + query] = weight;
      s[r][c] = weight == 0 ? 0 : weight * (dp[r][c] - m.mean[query]);
    }
}

/// dk and dv: a block computes kM of the last T keys of one head of keys. It goes over that head's group and, in tiles
/// of kN, over the queries that may see its keys, in order.
template <class A, int kWidth>
__global__ void __launch_bounds__(kThreads) attend_back_keys(AttentionBackwardArgs g, const float* delta) {
  begin_kernel();
  using L = Tile<kWidth>;
  extern __shared__ float4 shared[];
  const BackKeysMemory<L> memory(reinterpret_cast<float*>(shared));
  const auto [k, v, rows, p, lowest, lse, mean] = memory;
  const Block own(g, L::kM, g.kv_heads, g.t, false);
  const Keys<A> keys(g, own.sequence, own.head);
  const Thread<L> me;
  const int64_t earlier = g.keys - g.t, first_key = earlier + own.begin, stride = g.heads * g.width;
  load_rows<A, L::kM, L::kStride>(k, keys.k + first_key * keys.stride, keys.stride, g.t - own.begin, g.width);
  load_rows<A, L::kM, L::kStride>(v, keys.v + first_key * keys.stride, keys.stride, g.t - own.begin, g.width);
  const float scale = rsqrtf(float(g.width));
  float4 dk[L::kRows][L::kVectors] = {}, dv[L::kRows][L::kVectors] = {};
  const int64_t end = g.window ? min(g.t, own.begin + L::kM - 1 + g.window) : g.t;
  const int64_t group = g.heads / g.kv_heads;
  for (int64_t head = own.head * group; head < (own.head + 1) * group; ++head)
    for (int64_t begin = own.begin / L::kN * L::kN; begin < end; begin += L::kN) {
      const Block at{own.sequence, head, begin};
      load_lowest<L::kN>(lowest, g, at.sequence, begin);
      load_statistics<L::kN>(lse, static_cast<const float*>(g.lse) + statistic(g, at), g.t - begin, kLog2e);
      load_statistics<L::kN>(mean, delta + statistic(g, at), g.t - begin, 1);
      __syncthreads();
      if (smallest<L::kN>(lowest) >= first_key + L::kM) {  // no query of the tile sees these keys
        __syncthreads();
        continue;
      }
      load_rows<A, L::kN, L::kStride>(rows, query<A>(g, g.q, at), stride, g.t - begin, g.width);
      __syncthreads();
      float s[L::kRows][L::kColumns] = {}, dp[L::kRows][L::kColumns] = {};
      add_row_products<L>(s, k, rows, g.width, me);
      __syncthreads();
      load_rows<A, L::kN, L::kStride>(rows, query<A>(g, g.dout, at), stride, g.t - begin, g.width);
      __syncthreads();
      add_row_products<L>(dp, v, rows, g.width, me);
      weigh<L>(s, dp, scale, int(first_key), int(begin + earlier), memory, me);
      __syncthreads();
      add_column_products<L>(dv, p, rows, g.width, me);
      __syncthreads();
      load_rows<A, L::kN, L::kStride>(rows, query<A>(g, g.q, at), stride, g.t - begin, g.width);
#pragma unroll
      for (int r = 0; r < L::kRows; ++r)
#pragma unroll
        for (int c = 0; c < L::kColumns; ++c) p[me.row(r) * L::kProductStride + me.column(c)] = s[r][c];
      __syncthreads();
      add_column_products<L>(dk, p, rows, g.width, me);
      __syncthreads();
    }
  const int64_t place = (own.sequence * g.t + own.begin) * g.kv_heads + own.head;
#pragma unroll
  for (int r = 0; r < L::kRows; ++r) {
    if (own.begin + me.row(r) >= g.t) continue;
    const int64_t row = (place + me.row(r) * g.kv_heads) * g.width;
    store_row<L>(static_cast<A*>(g.dk) + row, dk[r], scale, g.width, me);
    store_row<L>(static_cast<A*>(g.dv) + row, dv[r], 1, g.width, me);
  }
}

/// Floats of shared memory: `resident` tiles of kM rows and one of kN, the products, and three numbers a row.
template <class L>
constexpr size_t shared_bytes(int resident) {
  return sizeof(float) * ((resident * L::kM + L::kN) * L::kStride + L::kM * L::kProductStride + 3 * L::kM);
}

template <class Kernel, class... Args>
void launch(const char* op, Kernel* kernel, int64_t blocks, size_t shared, const Args&... args) {
  MMFREE_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)));
  launch_kernel(kernel, {unsigned(blocks), kThreads, shared}, args...);
  check_launch(op);
}

/// Calls body<A, kWidth>() with the narrowest tile that holds a head.
template <class Body>
void dispatch(const AttentionArgs& g, const char* op, Body&& body) {
  MMFREE_CHECK(ShapeError, g.width <= kWidest, op, ": heads of ", g.width, " numbers; a GPU does 512 at most");
  dispatch_activation(g.dtype, op, [&]<class A>() {
    if (g.width <= 64) return body.template operator()<A, 64>();
    if (g.width <= 128) return body.template operator()<A, 128>();
    if (g.width <= 256) return body.template operator()<A, 256>();
    body.template operator()<A, 512>();
  });
}

}  // namespace

void attention(const AttentionArgs& g) {
  if (g.heads == 0 || g.width == 0) return;
  if (fused_attention(g)) return;
  if (g.t <= kFewQueries) return attend_few(g);
  dispatch(g, "attention", [&]<class A, int kWidth>() {
    using L = Tile<kWidth>;
    launch("attention", attend<A, kWidth>, ceil_div(g.t, L::kM) * g.heads * g.b, shared_bytes<L>(1), g);
  });
}

void attention_backward(const AttentionBackwardArgs& g) {
  if (g.heads == 0 || g.width == 0) return;
  if (fused_attention_backward(g)) return;
  float* const delta = static_cast<float*>(g.scratch);
  dispatch(g, "attention_backward", [&]<class A, int kWidth>() {
    using L = Tile<kWidth>;
    const int64_t tiles = ceil_div(g.t, L::kM) * g.b;
    launch("attention_backward", attend_back_queries<A, kWidth>, tiles * g.heads, shared_bytes<L>(2), g, delta);
    launch("attention_backward", attend_back_keys<A, kWidth>, tiles * g.kv_heads, shared_bytes<L>(2), g,
           static_cast<const float*>(delta));
  });
}

}  // namespace mmfree::cuda
