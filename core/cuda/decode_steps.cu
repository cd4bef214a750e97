#include "core/cuda/decode_norm.cuh"

/// The steps of a decode program that are not ternary products.
namespace mmfree::cuda::decode {
namespace {

constexpr int kWarps = kThreads / kWarp;

/// A block computes one row of a table in any store.
template <TableStore kStore>
__global__ void __launch_bounds__(kThreads) look_up(StoredTableArgs g) {
  begin_kernel();
  const int64_t id = g.ids[blockIdx.x], d = g.d;
  for (int64_t k = threadIdx.x; k < d; k += kThreads) {
    float x;
    if constexpr (kStore == TableStore::f32) {
      x = static_cast<const float*>(g.codes)[id * d + k];
    } else if constexpr (kStore == TableStore::bf16) {
      x = to_float(static_cast<const Bf16*>(g.codes)[id * d + k]);
    } else if constexpr (kStore == TableStore::int8) {
      x = float(static_cast<const int8_t*>(g.codes)[id * d + k]) * static_cast<const float*>(g.scale)[id];
    } else {
      const int both = static_cast<const uint8_t*>(g.codes)[(id * d + k) / 2];
      const int64_t groups = (d + kTableGroup - 1) / kTableGroup;
      x = float((k % 2 ? both >> 4 : both & 15) - 8) *
          to_float(static_cast<const Bf16*>(g.scale)[id * groups + k / kTableGroup]);
    }
    g.y[blockIdx.x * d + k] = x;
  }
}

/// A block computes one row.
template <int V>
__global__ void __launch_bounds__(kThreads) norm_rows(const __grid_constant__ Norm p) {
  extern __shared__ float4 shared[];
  __shared__ Reduction reduce;
  reduce.clear();
  begin_kernel();
  const int64_t n = blockIdx.x, row = p.wanted ? p.wanted[n] : n;
  const auto emit = [&](int b, int k, auto& v, ActivationScale<float> scale) {
    const Norm::Branch& branch = p.branches[b];
    if (branch.codes) return store_codes(static_cast<int8_t*>(branch.out) + n * p.code_stride + k, v, scale);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if (branch.rounding == Rounding::int8) v[i] = float(activation_code(v[i], scale.inverse)) * scale.step;
      if (branch.rounding == Rounding::bf16) v[i] = to_float(from_float<Bf16>(v[i]));
    }
    store(static_cast<float*>(branch.out) + n * p.d + k, v);
  };
  const RowFactors factors = norm_row<V>(p, row, true, reduce, 0, reinterpret_cast<float*>(shared), emit);
#pragma unroll
  for (int b = 0; b < kMostMatrices; ++b) {
    if (b >= p.count || !p.branches[b].codes) continue;
    int8_t* codes = static_cast<int8_t*>(p.branches[b].out) + n * p.code_stride;
    for (int k = p.d + int(threadIdx.x); k < p.code_stride; k += kThreads) codes[k] = 0;
    if (threadIdx.x == 0) p.branches[b].step[n] = factors.scale[b].step;
  }
}

constexpr int kPlainRows = 8;

/// A warp computes one output of kPlainRows rows: each lane adds every 32nd pack of V columns, then the lanes are
/// added.
template <class W, int V>
__global__ void __launch_bounds__(kThreads)
    plain_products(const float* x, const W* w, float* y, int rows, int64_t outputs, int64_t k) {
  begin_kernel();
  const int64_t output = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (output >= outputs) return;
  const int first = int(blockIdx.y) * kPlainRows, lane = threadIdx.x % kWarp;
  float sums[kPlainRows] = {};
  for (int64_t at = lane * V; at < k; at += kWarp * V) {
    float weights[V];
    load(weights, w + output * k + at);
#pragma unroll
    for (int r = 0; r < kPlainRows; ++r) {
      if (first + r >= rows) break;
      float values[V];
      load(values, x + (first + r) * k + at);
#pragma unroll
      for (int i = 0; i < V; ++i) sums[r] = fmaf(values[i], weights[i], sums[r]);
    }
  }
#pragma unroll
  for (int r = 0; r < kPlainRows; ++r) {
    const float sum = warp_sum(sums[r]);
    if (lane == 0 && first + r < rows) y[(first + r) * outputs + output] = sum;
  }
}

constexpr int kChannels = kWarp, kTime = 64, kStretch = kTime / kWarps;  // of a block's tile; steps of a warp

/// A block has kChannels channels of one span, in tiles of kTime tokens: all warps compute the gates of a tile, one
/// goes through time, all store.
__global__ void __launch_bounds__(kThreads) scan_spans(DecodeScan s, const int32_t* spans, const int32_t* slots) {
  __shared__ Gates gates[kTime][kChannels];
  begin_kernel();
  const int first = spans[2 * blockIdx.y], count = spans[2 * blockIdx.y + 1];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t channel = int64_t(blockIdx.x) * kChannels + lane;
  const bool live = channel < s.d;
  float* state = s.state + slots[first] * s.d + channel;
  const float gamma = live && s.gamma ? s.gamma[channel] : 0.0f;
  float h = live ? *state : 0.0f;
  float z[kStretch], a[kStretch];
  const auto place = [&](int t) { return (int64_t(first) + t) * s.d + channel; };
  const auto fetch = [&](int begin) {
#pragma unroll
    for (int i = 0; i < kStretch; ++i) {
      const int t = begin + warp * kStretch + i;
      const bool inside = live && t < count;
      z[i] = inside ? s.z[place(t)] : 0.0f, a[i] = inside ? s.a[place(t)] : 0.0f;
    }
  };
  fetch(0);
  for (int begin = 0; begin < count; begin += kTime) {
#pragma unroll
    for (int i = 0; i < kStretch; ++i) gates[warp * kStretch + i][lane] = Gates(z[i], a[i], gamma);
    __syncthreads();
    fetch(begin + kTime);
    if (warp == 0) {
      const int steps = min(kTime, count - begin);
#pragma unroll 8
      for (int t = 0; t < steps; ++t) gates[t][lane].add = h = gates[t][lane].next(h);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kStretch; ++i) {
      const int t = begin + warp * kStretch + i;
      if (live && t < count) s.h[place(t)] = gates[warp * kStretch + i][lane].add;
    }
  }
  if (live && warp == 0) *state = h;
}

/// A block packs a row, a thread at a time one word.
__global__ void __launch_bounds__(kThreads)
    pack_rows(const int8_t* codes, int64_t cols, int64_t words, uint32_t* packed) {
  begin_kernel();
  const int8_t* row = codes + blockIdx.x * cols;
  for (int64_t word = threadIdx.x; word < words; word += kThreads) {
    const int64_t part = word % kBlockWords;
    const int64_t first = word / kBlockWords * kBlockColumns + part % 4 * 64 + part / 4 * 16;
    uint32_t bits = 0;
    for (int c = 0; c < 16; ++c) {
      const uint32_t code = first + c < cols ? uint32_t(row[first + c] + 1) : 1;
      bits |= code << (16 * (c / 4 % 2) + 2 * (c / 8) + 4 * (c % 4));
    }
    packed[blockIdx.x * words + word] = bits;
  }
}

template <class W>
void launch_plain(const DecodeMatrix& m, const W* w, int rows, float* y) {
  constexpr int kWide = 4;
  const bool wide = m.k % kWide == 0 && is_aligned(m.x) && is_aligned(w);
  launch_kernel(wide ? plain_products<W, kWide> : plain_products<W, 1>,
                {dim3(unsigned(ceil_div(m.o, kWarps)), unsigned(ceil_div(rows, kPlainRows))), kThreads}, m.x, w, y,
                rows, m.o, m.k);
  check_launch("decode");
}

}  // namespace

void embed(const DecodeEmbed& e, const int32_t* ids, int rows) {
  StoredTableArgs g = e.table;
  g.ids = ids, g.y = e.y, g.n = rows;
  const auto kernel = g.store == TableStore::f32    ? look_up<TableStore::f32>
                      : g.store == TableStore::bf16 ? look_up<TableStore::bf16>
                      : g.store == TableStore::int8 ? look_up<TableStore::int8>
                                                    : look_up<TableStore::int4>;
  launch_kernel(kernel, {unsigned(rows), kThreads}, g);
  check_launch("decode");
}

void norm(const Norm& p, int rows) {
  const auto run = [&](auto kernel) {
    const size_t bytes = size_t(ceil_div(p.d, 4)) * 16;
    if (bytes > 48 << 10)
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)), "decode");
    launch_kernel(kernel, {unsigned(rows), kThreads, bytes}, p);
    check_launch("decode");
  };
  in_fours(p) ? run(norm_rows<4>) : run(norm_rows<1>);
}

void plain(const DecodeMatrix& m, int rows, int64_t first_row) {
  float* y = m.y + first_row * m.o;
  if (m.bf16_w)
    launch_plain(m, reinterpret_cast<const Bf16*>(m.w), rows, y);
  else
    launch_plain(m, m.w, rows, y);
}

void scan(const DecodeScan& s, const Rows& rows) {
  launch_kernel(scan_spans, {dim3(unsigned(ceil_div(s.d, kChannels)), unsigned(rows.span_count)), kThreads}, s,
                rows.spans, rows.slots);
  check_launch("decode");
}

void pack(const int8_t* codes, int64_t rows, int64_t cols, uint32_t* packed) {
  if (rows == 0) return;
  launch_kernel(pack_rows, {unsigned(rows), kThreads}, codes, cols, row_words(cols), packed);
  check_launch("decode");
}

}  // namespace mmfree::cuda::decode
