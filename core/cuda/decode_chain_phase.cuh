#pragma once
#include "core/cuda/decode_chain.cuh"

/// A phase of a chain as the computing threads of a block walk through it. The code is short rather than fast where it
/// stands: what a layer executes must stay in the instruction cache of a multiprocessor, or the threads wait for their
/// instructions longer than for anything else. So there is one loop for all norms and one for all products, and nothing
/// is unrolled beyond the four columns of an access.
namespace mmfree::cuda::decode {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

using ChainReduction = RowReduction<3, kMostMatrices, kThreads>;

/// What a computing thread carries through the phases.
struct Walk {
  const ChainArgs& g;
  const ChainMemory& memory;
  ChainReduction& reduce;
  uint32_t* words;  ///< of this launch
  ChainRing ring = {};
  int turn = 0;
  int left = -1;  ///< the stage of the phase before, which is not released yet
};

__device__ inline int lane() { return int(threadIdx.x) % kWarp; }
__device__ inline int warp() { return int(threadIdx.x) / kWarp; }

/// The norms of all rows of a phase: codes and steps to shared memory.
template <int kRows>
__device__ void normalise(Walk& w, const Phase& p, const NormWeights& weights, int rows) {
  const Norm norm = p.norm;  // registers, which stores do not make stale
  const ChainMemory& memory = w.memory;
  const int stride = int(norm.code_stride);
#pragma unroll 1
  for (int r = 0; r < rows; ++r, w.turn ^= 1) {
    const int64_t row = kRows > 1 && p.at_wanted ? w.g.rows.wanted[r] : r;
    const auto word = [&](const Place& s) {
      return s.kind == Place::passed ? w.words + row * w.g.plane + s.at : nullptr;
    };
    const auto source = [&](const Place& s, const float* there, const float* received) {
      return s.kind == Place::kept     ? memory.kept + row * w.g.shape.kept + s.at
             : s.kind == Place::passed ? received
                                       : there + row * norm.stride;
    };
    receive(norm.d, word(p.a), memory.x, word(p.b), memory.y);
    float* sum = p.keeps >= 0 ? memory.kept + row * w.g.shape.kept + p.keeps : nullptr;
    int8_t* codes = memory.codes + r * norm.count * stride;
    const auto emit = [&](int b, int k, auto& v, ActivationScale<float> scale) {
      store_codes(codes + b * stride + k, v, scale);
    };
    StoredRow<4> stored{weights, norm.d, source(p.a, norm.a, memory.x), source(p.b, norm.b, memory.y), sum, memory.x};
    const RowFactors factors = norm_row(norm, weights, stored, w.reduce, w.turn, emit);
    if (threadIdx.x == 0) {
#pragma unroll
      for (int b = 0; b < kMostMatrices; ++b)
        if (b < norm.count) memory.steps[r * kMostMatrices + b] = factors.scale[b].step;
    }
    if (p.sum_leaves && blockIdx.x == 0)
      each_column<4>(norm.d, [&](int k) {
        *reinterpret_cast<float4*>(norm.x + row * norm.d + k) = *reinterpret_cast<const float4*>(sum + k);
      });
  }
#pragma unroll 1
  for (int i = norm.d + int(threadIdx.x); i < stride; i += kThreads)
#pragma unroll 1
    for (int row = 0; row < rows * norm.count; ++row) memory.codes[row * stride + i] = 0;
}

/// The sums of a row of weights over this lane's columns: word pairs lane, lane + 32, … of it. Code rows are `stride`
/// bytes apart.
template <int kRows>
__device__ void multiply_lane(const uint32_t* weights, int words, const int8_t* codes_there, int stride,
                              int (&sums)[kRows]) {
#pragma unroll 1
  for (int pair = lane(); pair < words / 2; pair += kWarp) {
    // Pair t, h of a block has the words 4 t + 2 h + {0, 1}: columns 64 (2 h + {0, 1}) + 16 t.
    const int8_t* codes = codes_there + pair / 8 * kBlockColumns + pair % 2 * 128 + pair % 8 / 2 * 16;
    const uint2 both = *reinterpret_cast<const uint2*>(weights + 2 * pair);
    const Weights16 low(both.x), high(both.y);
#pragma unroll
    for (int r = 0; r < kRows; ++r, codes += stride) {
      const int4 x = *reinterpret_cast<const int4*>(codes), y = *reinterpret_cast<const int4*>(codes + 64);
      int left = sums[r], right = 0;
      left = __dp4a(x.x, int(low.at[0]), left), right = __dp4a(y.x, int(high.at[0]), right);
      left = __dp4a(x.y, int(low.at[1]), left), right = __dp4a(y.y, int(high.at[1]), right);
      left = __dp4a(x.z, int(low.at[2]), left), right = __dp4a(y.z, int(high.at[2]), right);
      left = __dp4a(x.w, int(low.at[3]), left), right = __dp4a(y.w, int(high.at[3]), right);
      sums[r] = left + right;
    }
  }
}

/// Consecutive units whose outputs the lanes of a warp finish, one each: those from the block's unit `first` on.
struct Batch {
  int first, count;
  __device__ int own() const { return first + min(lane(), count - 1); }
};
/// Units of a warp's share of an entry from the `done`-th on.
__device__ inline Batch batch_of(const Entries& e, int parts, int done) {
  const int begin = e.count * warp() / kWarps + done, end = e.count * (warp() + 1) / kWarps;
  return {e.next + begin, min(end - begin, kWarp / parts)};
}

/// What a scan's lane reads before the values are there.
template <int kRows>
struct Ahead {
  float state[kRows], gamma = 0;
  __device__ void read(const Walk& w, const Group& g, const Batch& batch, int rows) {
    const int unit = batch.own();
    if (g.gamma) gamma = g.gamma[unit];
#pragma unroll
    for (int r = 0; r < kRows; ++r) state[r] = r < rows ? *state_of(w, g, r, unit) : 0.0f;
  }
  static __device__ float* state_of(const Walk& w, const Group& g, int row, int unit) {
    return g.state + int64_t(w.g.rows.slots[row]) * g.matrices[0].rows + unit;
  }
};

/// Stores and passes what the lanes' units are in row r of the call, whose sums are in lanes part · count + unit.
template <int kRows>
__device__ void finish_batch(const Walk& w, const Phase& p, const Batch& batch, int matrix, int r, int sum,
                             const Ahead<kRows>& ahead, float state) {
  const Group& g = p.group;
  const int unit = batch.own(), parts = parts_of(g.finish);
  float y[3];
#pragma unroll
  for (int part = 0; part < 3; ++part) {
    if (part >= parts) break;
    const int m = matrix + part;
    const int own = __shfl_sync(0xffffffffu, sum, part * batch.count + min(lane(), batch.count - 1));
    y[part] = scaled(own, w.memory.steps[r * kMostMatrices + g.matrices[m].branch], p.scale[m]);
  }
  if (lane() >= batch.count) return;
  const auto put = [&](int m, int64_t row, int output, float value) {
    const Phase::Output& out = p.outputs[m];
    if (out.passes >= 0) pass(w.words + r * w.g.plane + out.passes + output, value);
    if (out.leaves) out.y[row * out.stride + output] = value;
  };
  const int64_t row = r + (p.at_wanted ? w.g.first_row : 0);
  switch (g.finish) {
    case Finish::store:
      return put(matrix, row, unit - p.first[matrix], y[0]);
    case Finish::glu:
      return with_gate<Finish::glu>(g.f, [&](auto gate) { put(0, row, unit, gate(y[0], y[1])); });
    case Finish::scan:
      const float h = Gates(y[0], y[1], ahead.gamma).next(state);
      put(0, r, unit, h);
      put(2, row, unit, y[2]);
      *Ahead<kRows>::state_of(w, g, r, unit) = h;
  }
}

/// The products of a batch, whose weights of the first part begin at `there`; those of each part are `apart` words from
/// each other.
template <int kRows>
__device__ void multiply_batch(const Walk& w, const Phase& p, const Batch& batch, const uint32_t* there, int apart,
                               int rows, const Ahead<kRows>& ahead) {
  const Group& g = p.group;
  const int parts = parts_of(g.finish), stride = g.words * 16;
  const auto matrix_of = [&](int unit) { return (unit >= p.first[1]) + (unit >= p.first[2]) + (unit >= p.first[3]); };
  int mine[kRows] = {};
#pragma unroll 1
  for (int part = 0; part < parts; ++part, there += apart) {
#pragma unroll 1
    for (int i = 0; i < batch.count; ++i) {
      const int8_t* codes = w.memory.codes + g.matrices[part + matrix_of(batch.first + i)].branch * stride;
      int sums[kRows] = {};
      multiply_lane(there + i * g.words, g.words, codes, p.norm.count * stride, sums);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int sum = __reduce_add_sync(0xffffffffu, sums[r]);
        if (lane() == part * batch.count + i) mine[r] = sum;
      }
    }
  }
  const int matrix = matrix_of(batch.own());
#pragma unroll 1
  for (int r = 0; r < rows; ++r) {
    int sum = mine[0];
    float state = ahead.state[0];
#pragma unroll
    for (int i = 1; i < kRows; ++i)
      if (i == r) sum = mine[i], state = ahead.state[i];
    finish_batch<kRows>(w, p, batch, matrix, r, sum, ahead, state);
  }
}

template <int kRows>
__device__ void compute_phase(Walk& w, int rows_of_call) {
  const ChainMemory& memory = w.memory;
  const int first_stage = w.ring.stage;
  hopper::barrier_wait(memory.full(first_stage), w.ring.parity);
  const uint8_t* there = memory.stages + first_stage * w.g.shape.stage_bytes;
  const Phase& p = *reinterpret_cast<const Phase*>(there);
  const int rows = kRows == 1 ? 1 : p.at_wanted ? w.g.rows.wanted_count : rows_of_call;
  const int parts = parts_of(p.group.finish);
  Entries entry(p, w.g.shape.number);
  Batch batch = batch_of(entry, parts, 0);
  Ahead<kRows> ahead;
  const bool scans = p.group.finish == Finish::scan;
  if (scans && batch.count > 0) ahead.read(w, p.group, batch, rows);
  NormWeights weights(p.norm);
  const float* at = reinterpret_cast<const float*>(there + sizeof(Phase));
  weights.each([&](const float*& from) { from = at, at += p.norm.d; });
  normalise<kRows>(w, p, weights, rows);
  // What the loading thread reads from now on does not delay values that anybody waits for.
  if (w.left >= 0) memory.release(w.left);
  w.left = first_stage;
  ChainReduction::wait();
  while (true) {
    const int stage = w.ring.stage;
    if (stage != first_stage) hopper::barrier_wait(memory.full(stage), w.ring.parity);
    const auto* units = reinterpret_cast<const uint32_t*>(memory.stages + stage * w.g.shape.stage_bytes + entry.header);
    for (int done = 0; batch.count > 0; batch = batch_of(entry, parts, done)) {
      if (scans && (done || stage != first_stage)) ahead.read(w, p.group, batch, rows);
      multiply_batch<kRows>(w, p, batch, units + (batch.first - entry.next) * p.group.words,
                            entry.count * p.group.words, rows, ahead);
      done += batch.count;
    }
    w.ring.next(w.g.shape.stages);
    if (stage != first_stage) memory.release(stage);
    if (!entry.advance()) return;
    batch = batch_of(entry, parts, 0);
  }
}

#endif

}  // namespace mmfree::cuda::decode
