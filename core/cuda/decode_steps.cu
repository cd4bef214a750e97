#include "core/cuda/decode_norm.cuh"
#include "core/cuda/table.cuh"

/// The steps of a decode program that are not ternary products.
namespace mmfree::cuda::decode {
namespace {

constexpr int kWarps = kThreads / kWarp;

/// A block computes one row of a table in any store.
template <TableStore kStore>
__global__ void __launch_bounds__(kThreads) look_up(StoredTableArgs g) {
  begin_kernel();
  const int64_t id = g.ids[blockIdx.x];
  for (int64_t k = threadIdx.x; k < g.d; k += kThreads) g.y[blockIdx.x * g.d + k] = table_value<kStore>(g, id, k);
}

/// A block computes every gridDim-th row. Its shared memory has x [padded(d)] and the norm's weights, which it gets
/// before it waits for the kernel before it.
template <int V>
__global__ void __launch_bounds__(kThreads) norm_rows(const __grid_constant__ Norm p, int rows) {
  extern __shared__ float4 shared[];
  __shared__ Reduction reduce;
  float* const xs = reinterpret_cast<float*>(shared);
  NormWeights weights(p);
  if constexpr (V == 4) stage_weights(weights, p.d, xs + padded(p.d));
  reduce.clear();
  begin_kernel();
  wait_copies<0>();
  int turn = 0;
  for (int64_t n = blockIdx.x; n < rows; n += gridDim.x, turn ^= 1) {
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
    const int64_t row = p.wanted ? p.wanted[n] : n, at = row * p.stride;
    StoredRow<V> stored{weights, p.d, p.a + at, p.b + at, p.x ? p.x + row * p.d : nullptr, xs};
    const RowFactors factors = norm_row(p, weights, stored, reduce, turn, emit);
#pragma unroll
    for (int b = 0; b < kMostMatrices; ++b) {
      if (b >= p.count || !p.branches[b].codes) continue;
      int8_t* codes = static_cast<int8_t*>(p.branches[b].out) + n * p.code_stride;
      for (int k = p.d + int(threadIdx.x); k < p.code_stride; k += kThreads) codes[k] = 0;
      if (threadIdx.x == 0) p.branches[b].step[n] = factors.scale[b].step;
    }
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

constexpr int kChannels = 16, kTime = 64;             // of a block's tile
constexpr int kScanThreads = kThreads + kWarp;        // the last warp goes through time
constexpr int kGates = kTime * kChannels / kThreads;  // of a thread and a tile
constexpr int kStretch = 16;                          // steps whose gates are read together

/// A block has kChannels channels of one span, in tiles of kTime tokens. While one warp goes through the time of a
/// tile, the others compute the gates of the next.
__global__ void __launch_bounds__(kScanThreads) scan_spans(DecodeScan s, const int32_t* spans, const int32_t* slots) {
  __shared__ Gates gates[2][kTime][kChannels];
  begin_kernel();
  const int first = spans[2 * blockIdx.y], count = spans[2 * blockIdx.y + 1];
  const bool walks = threadIdx.x >= kThreads;
  const int64_t channel = int64_t(blockIdx.x) * kChannels + threadIdx.x % kChannels;
  const bool live = channel < s.d && threadIdx.x < kThreads + kChannels;
  float* const state = s.state + slots[first] * s.d + channel;
  const float gamma = live && s.gamma ? s.gamma[channel] : 0.0f;
  float h = walks && live ? *state : 0.0f, z[kGates], a[kGates];
  const auto place = [&](int t) { return (int64_t(first) + t) * s.d + channel; };
  const auto time_of = [&](int i) { return int(threadIdx.x) / kChannels + i * (kThreads / kChannels); };
  const auto fetch = [&](int begin) {
#pragma unroll
    for (int i = 0; i < kGates; ++i) {
      const int t = begin + time_of(i);
      const bool inside = live && t < count;
      z[i] = inside ? s.z[place(t)] : 0.0f, a[i] = inside ? s.a[place(t)] : 0.0f;
    }
  };
  const auto compute = [&](int tile) {
#pragma unroll
    for (int i = 0; i < kGates; ++i) gates[tile % 2][time_of(i)][threadIdx.x % kChannels] = Gates(z[i], a[i], gamma);
  };
  const auto walk = [&](int tile) {
    const Gates(*from)[kChannels] = gates[tile % 2];
    const int steps = min(kTime, count - tile * kTime), column = threadIdx.x % kChannels;
    float* to = s.h + place(tile * kTime);
    int t = 0;
    for (; t + kStretch <= steps; t += kStretch) {
      Gates next[kStretch];
#pragma unroll
      for (int i = 0; i < kStretch; ++i) next[i] = from[t + i][column];
#pragma unroll
      for (int i = 0; i < kStretch; ++i) next[i].add = h = next[i].next(h);
#pragma unroll
      for (int i = 0; i < kStretch; ++i, to += s.d)
        if (live) *to = next[i].add;
    }
    for (; t < steps; ++t, to += s.d) {
      h = from[t][column].next(h);
      if (live) *to = h;
    }
  };
  if (!walks) fetch(0), compute(0), fetch(kTime);
  __syncthreads();
  for (int tile = 0; tile * kTime < count; ++tile) {
    if (walks)
      walk(tile);
    else
      compute(tile + 1), fetch((tile + 2) * kTime);
    __syncthreads();
  }
  if (walks && live) *state = h;
}

/// A token of each of `rows` sequences, a thread per channel of one.
__global__ void __launch_bounds__(kThreads) scan_step(DecodeScan s, const int32_t* slots) {
  begin_kernel();
  const int64_t channel = int64_t(blockIdx.x) * kThreads + threadIdx.x, at = blockIdx.y * s.d + channel;
  if (channel >= s.d) return;
  float* const state = s.state + slots[blockIdx.y] * s.d + channel;
  s.h[at] = *state = Gates(s.z[at], s.a[at], s.gamma ? s.gamma[channel] : 0.0f).next(*state);
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
  const bool fours = in_fours(p);
  const auto run = [&](auto kernel) {
    const size_t bytes = size_t(padded(p.d)) * (fours ? 1 + norm_weights(p) : 1) * sizeof(float);
    if (bytes > 48 << 10)
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)), "decode");
    constexpr int64_t kBlocks = 4;  // of a multiprocessor: few, since each gets the weights
    launch_kernel(kernel, {unsigned(std::min<int64_t>(rows, kBlocks * multiprocessors())), kThreads, bytes}, p, rows);
    check_launch("decode");
  };
  fours ? run(norm_rows<4>) : run(norm_rows<1>);
}

void plain(const DecodeMatrix& m, int rows, int64_t first_row) {
  float* y = m.y + first_row * m.o;
  if (m.bf16_w)
    launch_plain(m, reinterpret_cast<const Bf16*>(m.w), rows, y);
  else
    launch_plain(m, m.w, rows, y);
}

void scan(const DecodeScan& s, const Rows& rows) {
  if (rows.rows == rows.span_count)
    launch_kernel(scan_step, {dim3(unsigned(ceil_div(s.d, kThreads)), unsigned(rows.rows)), kThreads}, s, rows.slots);
  else
    launch_kernel(scan_spans, {dim3(unsigned(ceil_div(s.d, kChannels)), unsigned(rows.span_count)), kScanThreads}, s,
                  rows.spans, rows.slots);
  check_launch("decode");
}

void pack(const int8_t* codes, int64_t rows, int64_t cols, uint32_t* packed) {
  if (rows == 0) return;
  launch_kernel(pack_rows, {unsigned(rows), kThreads}, codes, cols, row_words(cols), packed);
  check_launch("decode");
}

}  // namespace mmfree::cuda::decode
