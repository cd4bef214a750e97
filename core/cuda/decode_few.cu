#include "core/cuda/copies.cuh"
#include "core/cuda/decode_norm.cuh"

/// Norm and ternary products of a few rows in one kernel, whose time is that of its dependencies. Every block
/// normalises all rows for itself: that costs less than a second kernel. Before it waits for the kernel before, it has
/// its weights copied to shared memory and reads the rows' slots: no kernel writes them.
namespace mmfree::cuda::decode {
namespace {

constexpr int kWarps = kThreads / kWarp;
constexpr size_t kMostShared = 96 << 10;

struct FewArgs {
  Norm norm;
  Group group;
  int first[kMostMatrices];  ///< Finish::store: first unit of each matrix
  int rows;
  int units, per_block;
  int staged;  ///< units of a block whose weights are copied to shared memory
};

/// Number of the norm's weight vectors: of the block norm, the gate and the branches.
__host__ __device__ inline int norm_weights(const Norm& p) {
  int count = (p.outer != nullptr) + (p.weight != nullptr);
  for (int b = 0; b < p.count; ++b) count += p.branches[b].weight != nullptr;
  return count;
}

/// Shared memory of a block: weights [matrices of a unit][staged][words], codes [rows][branches][block_columns(k)], x
/// [d], the norm's weights [norm_weights()][d], steps [rows][branches].
struct Memory {
  uint32_t* weights;
  int8_t* codes;
  float *x, *norm, *steps;
  int columns;  ///< of x and norm
  __device__ Memory(uint32_t* from, const FewArgs& g, int of_unit, int rows) {
    weights = from;
    codes = reinterpret_cast<int8_t*>(weights + int64_t(of_unit) * g.staged * g.group.words);
    x = reinterpret_cast<float*>(codes + rows * g.norm.count * g.group.words * 16);
    columns = (g.norm.d + 3) / 4 * 4;
    norm = x + columns;
    steps = norm + norm_weights(g.norm) * columns;
  }
};
size_t shared_bytes(const Norm& norm, const Group& group, int of_unit, int staged, int rows) {
  return size_t(of_unit * staged * group.words) * 4 + size_t(rows * norm.count * block_columns(group.k)) +
         size_t((norm.d + 3) / 4 * 4 * (1 + norm_weights(norm)) + rows * norm.count) * 4;
}

/// Matrix and row of unit u, of which `part` is the number of the matrix if it has several.
struct Place {
  int matrix, row;
  template <int kParts>
  __device__ static Place of(const FewArgs& g, int u, int part) {
    if constexpr (kParts > 1) return {part, u};
    int m = 0;
#pragma unroll
    for (int i = 1; i < kMostMatrices; ++i) m += i < g.group.count && u >= g.first[i];
    return {m, u - g.first[m]};
  }
};

template <int kParts>
__device__ const uint32_t* weights_of(const FewArgs& g, int unit, int part) {
  const Place at = Place::of<kParts>(g, unit, part);
  return g.group.matrices[at.matrix].codes + int64_t(at.row) * g.group.words;
}

template <int kParts>
__device__ void stage_weights(const FewArgs& g, int begin, int end, uint32_t* to) {
  const int pieces = g.group.words / 4;  // of a row
  for (int part = 0; part < kParts; ++part)
    for (int i = int(threadIdx.x); i < (end - begin) * pieces; i += kThreads) {
      const int unit = i / pieces, piece = i % pieces;
      copy_async(to + (part * g.staged + unit) * g.group.words + 4 * piece,
                 weights_of<kParts>(g, begin + unit, part) + 4 * piece);
    }
  commit_copies();
}

/// Starts copies of the norm's weights to shared memory, and lets `p` point there. A thread copies the columns that it
/// will read.
__device__ void stage_norm(Norm& p, const Memory& memory) {
  float* to = memory.norm;
  const auto stage = [&](const float*& from) {
    if (!from) return;
    each_column<4>(p.d, [&](int k) { copy_async(to + k, from + k); });
    from = to;
    to += memory.columns;
  };
  stage(p.outer);
  stage(p.weight);
#pragma unroll
  for (int b = 0; b < kMostMatrices; ++b)
    if (b < p.count) stage(p.branches[b].weight);
  commit_copies();
}

/// The norms of all rows: codes and steps to shared memory.
template <int V>
__device__ void normalise(const Norm& p, int rows, const Memory& memory, Reduction& reduce) {
  const int stride = int(p.code_stride);
  for (int i = p.d + int(threadIdx.x); i < stride; i += kThreads)
    for (int row = 0; row < rows * p.count; ++row) memory.codes[row * stride + i] = 0;
#pragma unroll 1
  for (int r = 0; r < rows; ++r) {
    int8_t* codes = memory.codes + r * p.count * stride;
    const auto emit = [&](int b, int k, auto& v, ActivationScale<float> scale) {
      store_codes(codes + b * stride + k, v, scale);
    };
    const int64_t row = p.wanted ? p.wanted[r] : r;
    const RowFactors factors = norm_row<V>(p, row, blockIdx.x == 0, reduce, r % 2, memory.x, emit);
    if (threadIdx.x == 0) {
#pragma unroll
      for (int b = 0; b < kMostMatrices; ++b)
        if (b < p.count) memory.steps[r * p.count + b] = factors.scale[b].step;
    }
  }
}

/// The sums of a unit over this lane's columns: word pairs lane, lane + 32, … of each row.
template <int kParts, int kRows>
__device__ void multiply_lane(const FewArgs& g, const Memory& memory, const uint32_t* (&weights)[kParts],
                              const int (&branch)[kParts], int (&sums)[kParts][kRows]) {
  const int columns = g.group.words * 16;
  for (int pair = int(threadIdx.x) % kWarp; pair < g.group.words / 2; pair += kWarp) {
    // Pair t, h of a block has the words 4 t + 2 h + {0, 1}: columns 64 (2 h + {0, 1}) + 16 t.
    const int column = pair / 8 * kBlockColumns + pair % 2 * 128 + pair % 8 / 2 * 16;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const uint2 words = *reinterpret_cast<const uint2*>(weights[part] + 2 * pair);
      const Weights16 low(words.x), high(words.y);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int8_t* codes = memory.codes + (r * g.norm.count + branch[part]) * columns + column;
        const int4 x = *reinterpret_cast<const int4*>(codes), y = *reinterpret_cast<const int4*>(codes + 64);
        int sum = sums[part][r];
        sum = __dp4a(x.x, int(low.at[0]), sum), sum = __dp4a(x.y, int(low.at[1]), sum);
        sum = __dp4a(x.z, int(low.at[2]), sum), sum = __dp4a(x.w, int(low.at[3]), sum);
        sum = __dp4a(y.x, int(high.at[0]), sum), sum = __dp4a(y.y, int(high.at[1]), sum);
        sum = __dp4a(y.z, int(high.at[2]), sum), sum = __dp4a(y.w, int(high.at[3]), sum);
        sums[part][r] = sum;
      }
    }
  }
}

/// Where the state of a slot's channel is.
__device__ inline float* state_of(const Group& p, int slot, int channel) {
  return p.state + int64_t(slot) * p.matrices[0].rows + channel;
}

/// Stores what a unit of one row gives.
template <Finish kFinish, int kParts>
__device__ void finish(const FewArgs& g, Place at, int row, int slot, float state, const float (&y)[kParts]) {
  const Group& p = g.group;
  const auto place = [&](const Matrix& m) { return m.y + (p.first_row + row) * m.stride + at.row; };
  if constexpr (kFinish == Finish::store) {
    *place(p.matrices[at.matrix]) = y[0];
  } else if constexpr (kFinish == Finish::glu) {
    *place(p.matrices[0]) = gated(p.f, y[0], y[1]);
  } else {
    const float h = Gates(y[0], y[1], p.gamma ? p.gamma[at.row] : 0.0f).next(state);
    *state_of(p, slot, at.row) = h;
    p.h[int64_t(row) * p.matrices[0].rows + at.row] = h;
    *place(p.matrices[2]) = y[2];
  }
}

template <Finish kFinish, int kParts, int V, int kRows>
__global__ void __launch_bounds__(kThreads) few_rows(const __grid_constant__ FewArgs g) {
  extern __shared__ uint4 shared[];
  __shared__ Reduction reduce;
  __shared__ float scales[kMostMatrices];
  const Memory memory(reinterpret_cast<uint32_t*>(shared), g, kParts, kRows);
  const int begin = int(blockIdx.x) * g.per_block, end = min(g.units, begin + g.per_block);
  const int staged = min(end, begin + g.staged);
  Norm norm = g.norm;
  if constexpr (V == 4) stage_norm(norm, memory);
  stage_weights<kParts>(g, begin, staged, memory.weights);
  if (int(threadIdx.x) < g.group.count) scales[threadIdx.x] = *g.group.matrices[threadIdx.x].scale;
  const int lane = int(threadIdx.x) % kWarp;
  const int slot = kFinish == Finish::scan && lane < g.rows ? g.group.slots[lane] : 0;
  const int first_unit = begin + int(threadIdx.x) / kWarp;
  reduce.clear();
  begin_kernel();
  const int rows = kRows > 1 ? g.rows : 1;
  float state = kFinish == Finish::scan && lane < rows && first_unit < end ? *state_of(g.group, slot, first_unit) : 0;
  wait_copies<1>();  // of the norm
  normalise<V>(norm, rows, memory, reduce);
  wait_copies<0>();
  __syncthreads();
  for (int unit = first_unit; unit < end; unit += kWarps) {
    if (kFinish == Finish::scan && lane < rows && unit != first_unit) state = *state_of(g.group, slot, unit);
    const uint32_t* weights[kParts];
    int branch[kParts], sums[kParts][kRows];
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      weights[part] = unit < staged ? memory.weights + (part * g.staged + unit - begin) * g.group.words
                                    : weights_of<kParts>(g, unit, part);
      branch[part] = g.group.matrices[Place::of<kParts>(g, unit, part).matrix].branch;
#pragma unroll
      for (int r = 0; r < kRows; ++r) sums[part][r] = 0;
    }
    multiply_lane<kParts, kRows>(g, memory, weights, branch, sums);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float y[kParts];
      const Place at = Place::of<kParts>(g, unit, 0);
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const int m = kParts > 1 ? part : at.matrix;
        const int sum = __reduce_add_sync(0xffffffffu, sums[part][r]);
        y[part] = scaled(sum, memory.steps[r * g.norm.count + branch[part]], scales[m]);
      }
      if (lane == r && r < rows) finish<kFinish>(g, at, r, slot, state, y);
    }
  }
}

constexpr int parts_of(Finish finish) { return finish == Finish::store ? 1 : finish == Finish::glu ? 2 : 3; }

template <Finish kFinish, int V, int kRows>
void launch(const FewArgs& g) {
  constexpr int kParts = parts_of(kFinish);
  const auto kernel = few_rows<kFinish, kParts, V, kRows>;
  static const bool prepared = [&] {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(kMostShared)), "decode");
    return true;
  }();
  (void)prepared;
  const size_t bytes = shared_bytes(g.norm, g.group, kParts, g.staged, kRows);
  launch_kernel(kernel, {unsigned(ceil_div(g.units, g.per_block)), kThreads, bytes}, g);
  check_launch("decode");
}

/// Rows that are not there are computed from what the shared memory holds, and not stored.
template <Finish kFinish>
void launch_shape(const FewArgs& g) {
  if (!in_fours(g.norm)) return launch<kFinish, 1, kFewRows>(g);
  g.rows == 1 ? launch<kFinish, 4, 1>(g) : launch<kFinish, 4, kFewRows>(g);
}

}  // namespace

bool fits_few(const Norm& norm, const Group& group) {
  return shared_bytes(norm, group, parts_of(group.finish), 1, kFewRows) <= kMostShared;
}

void few(const Norm& norm, const Group& group, int rows) {
  FewArgs g{norm, group, {}, rows, group.units(), 0, 0};
  for (int i = 1; i < group.count; ++i) g.first[i] = g.first[i - 1] + group.matrices[i - 1].rows;
  const int parts = parts_of(group.finish);
  // One block per multiprocessor; a block has at least a unit for each warp.
  g.per_block = int(std::max<int64_t>(ceil_div(g.units, multiprocessors()), kWarps));
  const size_t fixed = shared_bytes(norm, group, parts, 0, kFewRows), unit = size_t(parts) * group.words * 4;
  g.staged = int(std::min<size_t>(size_t(g.per_block), (kMostShared - fixed) / unit));
  switch (group.finish) {
    case Finish::store:
      return launch_shape<Finish::store>(g);
    case Finish::glu:
      return launch_shape<Finish::glu>(g);
    case Finish::scan:
      return launch_shape<Finish::scan>(g);
  }
}

}  // namespace mmfree::cuda::decode
