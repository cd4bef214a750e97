#include <algorithm>
#include <climits>
#include <map>

#include "core/cuda/decode_chain.cuh"

/// A block per multiprocessor walks through the phases. Every block normalises all rows for itself, and multiplies its
/// share of the units. Its last warp keeps a ring of stages filled with what the phases read that does not change:
/// weights arrive before the values that they are multiplied with.
///
/// No two blocks wait for each other but through passed words, and all blocks of the grid run at the same time: there
/// are at most as many as multiprocessors. A block has units in every phase. So when one block has received all values
/// of a phase, every block has read what the phases before passed, and what a phase writes to memory is not read by the
/// phases before it any more. Words are passed once per launch: two sets alternate, and each launch clears the set of
/// the launch before it.
namespace mmfree::cuda::decode {
namespace {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

using ChainReduction = RowReduction<3, kMostMatrices, kThreads>;

/// What a lane reads of a phase before it waits for values.
struct Ahead {
  float scale;         ///< of matrix `lane`
  int slot;            ///< scan: of row `lane`
  float state, gamma;  ///< scan: of the warp's first unit
};

/// What a computing thread carries through the phases.
struct Walk {
  const ChainArgs& g;
  const ChainMemory& memory;
  ChainReduction& reduce;
  uint32_t* words;  ///< of this launch
  ChainRing ring;
  int turn = 0;
};

__device__ inline int lane() { return int(threadIdx.x) % kWarp; }
__device__ inline int warp() { return int(threadIdx.x) / kWarp; }

/// Clears what the launch before passed.
__device__ void clear_words(uint32_t* set, int64_t plane, uint32_t rows) {
  for (int64_t i = 4 * (int64_t(blockIdx.x) * kThreads + threadIdx.x); i < rows * plane;
       i += 4 * int64_t(gridDim.x) * kThreads)
    *reinterpret_cast<uint4*>(set + i) = {kAbsent, kAbsent, kAbsent, kAbsent};
}

/// The rows of the table, kept by each block.
__device__ void embed_rows(const Walk& w) {
  const StoredTableArgs& t = w.g.table;
  for (int r = 0; r < w.g.rows.rows; ++r) {
    float* kept = w.memory.kept + r * w.g.shape.kept + w.g.embed_keeps;
    const int64_t id = w.g.rows.ids[r];
    each_column<4>(int(t.d), [&](int k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        kept[k + i] = table_value(t, id, k + i);
        if (w.g.embed_leaves && blockIdx.x == 0) t.y[r * t.d + k + i] = kept[k + i];
      }
    });
  }
}

/// The norms of all rows of a phase: codes and steps to shared memory.
template <int kRows>
__device__ void normalise(Walk& w, const Phase& p, const NormWeights& weights, int rows) {
  const Norm& norm = p.norm;
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
    const RowFactors factors = norm_row<4>(norm, weights, source(p.a, norm.a, memory.x), source(p.b, norm.b, memory.y),
                                           sum, w.reduce, w.turn, memory.x, emit);
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
  for (int i = norm.d + int(threadIdx.x); i < stride; i += kThreads)
    for (int row = 0; row < rows * norm.count; ++row) memory.codes[row * stride + i] = 0;
}

/// The sums of a unit over this lane's columns: word pairs lane, lane + 32, … of each row.
template <int kParts, int kRows>
__device__ void multiply_lane(const Phase& p, const int8_t* codes_there, const uint32_t* (&weights)[kParts],
                              const int (&branch)[kParts], int (&sums)[kParts][kRows]) {
  const int columns = p.group.words * 16;
  for (int pair = lane(); pair < p.group.words / 2; pair += kWarp) {
    // Pair t, h of a block has the words 4 t + 2 h + {0, 1}: columns 64 (2 h + {0, 1}) + 16 t.
    const int column = pair / 8 * kBlockColumns + pair % 2 * 128 + pair % 8 / 2 * 16;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const uint2 words = *reinterpret_cast<const uint2*>(weights[part] + 2 * pair);
      const Weights16 low(words.x), high(words.y);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int8_t* codes = codes_there + (r * p.norm.count + branch[part]) * columns + column;
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
__device__ inline float* state_of(const Group& g, int slot, int channel) {
  return g.state + int64_t(slot) * g.matrices[0].rows + channel;
}

__device__ void read_unit(const Group& g, int unit, int rows, Ahead& ahead) {
  ahead.state = lane() < rows ? *state_of(g, ahead.slot, unit) : 0.0f;
  ahead.gamma = g.gamma ? g.gamma[unit] : 0.0f;
}

/// Stores and passes what output `output` of one row is; `matrix` is that of one part.
template <Finish kFinish, int kParts>
__device__ void finish_row(const Walk& w, const Phase& p, int matrix, int output, int row, const Ahead& ahead,
                           const float (&y)[kParts]) {
  const Group& g = p.group;
  const auto put = [&](int m, float value, float* to) {
    if (p.leaves[m]) *to = value;
    if (p.passes[m] >= 0) pass(w.words + row * w.g.plane + p.passes[m] + output, value);
  };
  const int64_t at = row + (p.at_wanted ? w.g.first_row : 0);
  const auto place = [&](int m) { return g.matrices[m].y + at * g.matrices[m].stride + output; };
  if constexpr (kFinish == Finish::store) {
    put(matrix, y[0], place(matrix));
  } else if constexpr (kFinish == Finish::glu) {
    with_gate<kFinish>(g.f, [&](auto gate) { put(0, gate(y[0], y[1]), place(0)); });
  } else {
    const float h = Gates(y[0], y[1], ahead.gamma).next(ahead.state);
    *state_of(g, ahead.slot, output) = h;
    put(0, h, g.h + int64_t(row) * g.matrices[0].rows + output);
    put(2, y[2], place(2));
  }
}

/// The products of the block's units, entry after entry; the first one is there.
template <Finish kFinish, int kRows>
__device__ void multiply_units(Walk& w, const Phase& p, Entries e, int rows, Ahead ahead) {
  constexpr int kParts = parts_of(kFinish);
  const Group& g = p.group;
  const ChainMemory& memory = w.memory;
  const int first_stage = w.ring.stage, my_first = e.begin + warp();
  const auto release = [&](int stage) {
    __syncwarp();
    if (lane() == 0) hopper::barrier_arrive(memory.empty(stage), 0);
  };
  do {
    const int stage = w.ring.stage;
    if (e.header == 0) hopper::barrier_wait(memory.full(stage), w.ring.parity);
    const auto* there = reinterpret_cast<const uint32_t*>(memory.stages + stage * w.g.shape.stage_bytes + e.header);
    for (int i = (warp() - (e.next - e.begin)) & (kWarps - 1); i < e.count; i += kWarps) {
      const int unit = e.next + i;
      if (kFinish == Finish::scan && unit != my_first) read_unit(g, unit, rows, ahead);
      int matrix = 0;
      if constexpr (kParts == 1) {
#pragma unroll
        for (int m = 1; m < kMostMatrices; ++m) matrix += m < g.count && unit >= p.first[m];
      }
      const uint32_t* weights[kParts];
      int branch[kParts], sums[kParts][kRows];
      float scale[kParts];
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        scale[part] = __shfl_sync(0xffffffffu, ahead.scale, kParts == 1 ? matrix : part);
        weights[part] = there + (part * e.count + i) * g.words;
        branch[part] = g.matrices[kParts == 1 ? matrix : part].branch;
#pragma unroll
        for (int r = 0; r < kRows; ++r) sums[part][r] = 0;
      }
      multiply_lane<kParts, kRows>(p, memory.codes, weights, branch, sums);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float y[kParts];
#pragma unroll
        for (int part = 0; part < kParts; ++part)
          y[part] = scaled(__reduce_add_sync(0xffffffffu, sums[part][r]),
                           memory.steps[r * kMostMatrices + branch[part]], scale[part]);
        if (lane() == r && r < rows) finish_row<kFinish>(w, p, matrix, unit - p.first[matrix], r, ahead, y);
      }
    }
    if (stage != first_stage) release(stage);
    w.ring.next(w.g.shape.stages);
  } while (e.advance());
  release(first_stage);
}

template <int kRows>
__device__ void compute_phase(Walk& w, int rows_of_call) {
  hopper::barrier_wait(w.memory.full(w.ring.stage), w.ring.parity);
  const uint8_t* const there = w.memory.stages + w.ring.stage * w.g.shape.stage_bytes;
  const Phase& p = *reinterpret_cast<const Phase*>(there);
  const int rows = p.at_wanted ? w.g.rows.wanted_count : rows_of_call;
  const Entries e(p, w.g.shape);
  Ahead ahead{lane() < p.group.count ? *p.group.matrices[lane()].scale : 0.0f, 0, 0, 0};
  if (p.group.finish == Finish::scan) {
    if (lane() < rows) ahead.slot = w.g.rows.slots[lane()];
    if (e.begin + warp() < e.end) read_unit(p.group, e.begin + warp(), rows, ahead);
  }
  NormWeights weights(p.norm);
  const float* at = reinterpret_cast<const float*>(there + sizeof(Phase));
  weights.each([&](const float*& from) { from = at, at += p.norm.d; });
  normalise<kRows>(w, p, weights, rows);
  ChainReduction::wait();
  switch (p.group.finish) {
    case Finish::store:
      return multiply_units<Finish::store, kRows>(w, p, e, rows, ahead);
    case Finish::glu:
      return multiply_units<Finish::glu, kRows>(w, p, e, rows, ahead);
    case Finish::scan:
      return multiply_units<Finish::scan, kRows>(w, p, e, rows, ahead);
  }
}

/// The computing threads.
template <int kRows>
__device__ void walk_phases(const ChainArgs& g, const ChainMemory& memory) {
  __shared__ ChainReduction reduce;
  __shared__ ChainState before;
  reduce.clear();
  if (threadIdx.x == 0) before = *g.state;
  ChainReduction::wait();
  const uint32_t set = before.launches % 2;
  const int64_t set_words = kFewRows * g.plane;
  Walk w{g, memory, reduce, g.words + set * set_words, {}};
  if (g.embed_keeps >= 0) embed_rows(w);
  clear_words(g.words + (1 - set) * set_words, g.plane, before.rows[1 - set]);
  const int rows = kRows > 1 ? g.rows.rows : 1;
  for (int phase = 0; phase < g.count; ++phase) {
    // All warps of a block begin a phase together: without this barrier a step was a third slower, see
    // tests/bench/README.md.
    ChainReduction::wait();
    compute_phase<kRows>(w, rows);
  }
  if (threadIdx.x == 0 && atomicAdd(&g.state->ended, 1u) + 1 == gridDim.x) {
    g.state->ended = 0, g.state->launches = before.launches + 1;
    g.state->rows[set] = uint32_t(rows), g.state->rows[1 - set] = 0;
  }
}

#endif

template <int kRows>
__global__ void __launch_bounds__(kChainThreads, 1) chain_rows(const __grid_constant__ ChainArgs g) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint4 shared[];
  const ChainMemory memory(reinterpret_cast<uint8_t*>(shared), g.shape, kRows);
  if (threadIdx.x == 0) {
    for (int i = 0; i < g.shape.stages; ++i) {
      hopper::barrier_init(memory.full(i), 1);
      hopper::barrier_init(memory.empty(i), kWarps);
    }
    hopper::barrier_init_done();
  }
  __syncthreads();
  // Weights do not change: their copies begin before the kernel before has ended.
  const bool loads = threadIdx.x == kThreads;
  ChainLoader loader(g, memory);
  if (loads) loader.load(g.shape.stages);
  begin_kernel();
  if (threadIdx.x < kThreads)
    walk_phases<kRows>(g, memory);
  else if (loads)
    loader.load(INT_MAX);
#endif
}

/// Puts ops together until one does not fit.
class Builder {
 public:
  explicit Builder(size_t first) { chain_.first = first, chain_.count = 0; }

  bool add(const Op& op) {
    const bool fits = std::visit([&](const auto& o) { return take(o); }, op);
    chain_.count += fits;
    return fits;
  }

  std::optional<Chain> chain() {
    if (!set_shapes() && chain_.phases.size() > 1 && chain_.phases.back().at_wanted) {
      // A head that is too large goes its own way.
      const int head = int(chain_.phases.size()) - 1;
      std::erase_if(written_, [&](const auto& w) { return w.second.phase == head; });
      chain_.phases.pop_back();
      --chain_.count;
      set_shapes();
    }
    if (!chain_.shapes[0]) return std::nullopt;
    for (const auto& [address, leaves] : written_) *leave(leaves) = 1;
    const auto there = [&](const void* from, size_t bytes) {
      const Tensor t = Tensor::from({int64_t(bytes)}, static_cast<const uint8_t*>(from));
      return chain_.memory.emplace_back(t.to(Device::cuda)).raw_mut();
    };
    chain_.phases_there =
        reinterpret_cast<const Phase*>(there(chain_.phases.data(), chain_.phases.size() * sizeof(Phase)));
    const std::vector<uint32_t> words(size_t(2 * kFewRows) * size_t(std::max(chain_.words, 4)), kAbsent);
    chain_.words_there = reinterpret_cast<uint32_t*>(there(words.data(), words.size() * sizeof(uint32_t)));
    const ChainState state{};
    chain_.state = reinterpret_cast<ChainState*>(there(&state, sizeof state));
    return std::move(chain_);
  }

 private:
  /// A value of a row, and where it is.
  struct Value {
    Place place;
    int width;
  };
  /// Which flag says that a value leaves: that of the embedding, of a phase's sum, or of a phase's matrix.
  struct Leaves {
    int phase, matrix;
  };
  static constexpr int kSum = -1;

  int* leave(Leaves l) {
    if (l.phase < 0) return &chain_.embed_leaves;
    Phase& p = chain_.phases[size_t(l.phase)];
    return l.matrix == kSum ? &p.sum_leaves : &p.leaves[l.matrix];
  }

  bool take(const DecodeEmbed& e) {
    if (chain_.count || e.table.d % 4) return false;
    chain_.embed = e;
    chain_.embed_keeps = keep(e.y, int(e.table.d), {-1, 0});
    return true;
  }
  bool take(const DecodeScan&) { return false; }
  bool take(const Attend&) { return false; }
  bool take(const Linear& op) {
    if (!op.norm || !op.plain.empty() || op.group.count == 0 || !in_fours(*op.norm) || ended_) return false;
    Phase p{};
    p.norm = *op.norm, p.group = op.group, p.at_wanted = op.at_wanted;
    if (op.scan) p.group.finish = Finish::scan;
    p.units = p.group.units();
    if (p.group.finish == Finish::store)
      for (int i = 1; i < p.group.count; ++i) p.first[i] = p.first[i - 1] + p.group.matrices[i - 1].rows;
    p.a = find(p.norm.a), p.b = find(p.norm.b);
    p.keeps = -1;
    const int number = int(chain_.phases.size());
    if (p.norm.x) p.keeps = keep(p.norm.x, p.norm.d, {number, kSum});
    for (int& to : p.passes) to = -1;
    for (int m = 0; m < p.group.count; ++m) {
      const bool scan = p.group.finish == Finish::scan;
      if (scan ? m == 1 : p.group.finish == Finish::glu && m == 1) continue;
      const float* to = scan && m == 0 ? p.group.h : p.group.matrices[m].y;
      written_[to] = {number, m};
      if (p.at_wanted) continue;
      p.passes[m] = chain_.words;
      const int width = p.group.matrices[m].rows;
      values_[to] = {{Place::passed, chain_.words}, width};
      chain_.words += padded(width);
    }
    ended_ = p.at_wanted;
    chain_.phases.push_back(p);
    return true;
  }

  /// A place for a value in every block's memory.
  int keep(const float* address, int width, Leaves leaves) {
    written_[address] = leaves;
    const auto [slot, added] = slots_.try_emplace(address, chain_.kept);
    if (added) chain_.kept += padded(width);
    values_[address] = {{Place::kept, slot->second}, width};
    return slot->second;
  }

  /// Where what is at an address is; it may be a part of a value.
  Place find(const float* address) const {
    auto value = values_.upper_bound(address);
    if (!address || value == values_.begin()) return {};
    --value;
    const int64_t offset = address - value->first;
    if (offset >= value->second.width) return {};
    Place p = value->second.place;
    p.at += int(offset);
    return p;
  }

  /// Whether there is enough shared memory for one row.
  bool set_shapes() {
    if (chain_.phases.empty()) return false;
    chain_.blocks = multiprocessors();
    for (const Phase& p : chain_.phases) chain_.blocks = std::min(chain_.blocks, p.units);
    for (int few : {0, 1}) chain_.shapes[few] = shape(few ? kFewRows : 1);
    return chain_.shapes[0].has_value();
  }

  /// Shared memory for calls of `rows` rows; none if it is not enough.
  std::optional<ChainShape> shape(int rows) const {
    constexpr int kMost = 40 << 10;  // bytes of a stage where a phase has more than that
    ChainShape s{0, 0, 0, 0, chain_.kept, 0};
    const auto header = [](const Phase& p) { return int(sizeof(Phase)) + norm_weights(p.norm) * p.norm.d * 4; };
    const auto unit = [](const Phase& p) { return parts_of(p.group.finish) * p.group.words * 4; };
    const auto units = [&](const Phase& p) { return int(ceil_div(p.units, chain_.blocks)); };
    for (const Phase& p : chain_.phases) {
      const int all = header(p) + units(p) * unit(p), some = header(p) + std::min(units(p), kWarps) * unit(p);
      s.stage_bytes = std::max(s.stage_bytes, std::max(std::min(all, kMost), some));
      s.code_bytes = std::max(s.code_bytes, p.norm.count * p.group.words * 16);
      s.columns = std::max(s.columns, padded(p.norm.d));
    }
    s.stage_bytes = (s.stage_bytes + 127) / 128 * 128;
    const size_t rest = size_t(rows) * size_t(s.code_bytes) +
                        size_t(2 * s.columns + rows * s.kept + rows * kMostMatrices) * sizeof(float) +
                        2 * kMostStages * sizeof(uint64_t);
    constexpr size_t kShared = 224 << 10;  // what a block of Hopper has, less what is not dynamic
    if (rest >= kShared) return std::nullopt;
    s.stages = int(std::min<size_t>((kShared - rest) / size_t(s.stage_bytes), kMostStages));
    s.bytes = rest + size_t(s.stages) * size_t(s.stage_bytes);
    for (const Phase& p : chain_.phases) {  // a phase's first entry stays until it ends
      const int left = units(p) - (s.stage_bytes - header(p)) / unit(p), each = s.stage_bytes / unit(p);
      if (s.stages < 2 || 1 + ceil_div(std::max(left, 0), each) > s.stages) return std::nullopt;
    }
    return s;
  }

  Chain chain_;
  bool ended_ = false;
  std::map<const float*, Value> values_;
  std::map<const float*, int> slots_;
  std::map<const float*, Leaves> written_;  ///< the last writer of an address: what others read after the chain
};

template <int kRows>
void launch(const ChainArgs& g, int blocks) {
  const auto kernel = chain_rows<kRows>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(g.shape.bytes)), "decode");
  launch_kernel(kernel, {unsigned(blocks), kChainThreads, g.shape.bytes}, g);
  check_launch("decode");
}

}  // namespace

std::vector<Chain> chains(const std::vector<Op>& ops) {
  std::vector<Chain> all;
  if (!is_hopper()) return all;
  for (size_t at = 0; at < ops.size();) {
    Builder builder(at);
    size_t end = at;
    while (end < ops.size() && builder.add(ops[end])) ++end;
    if (auto chain = builder.chain()) all.push_back(std::move(*chain));
    at = std::max(end, at + 1);
  }
  return all;
}

void run(const Chain& chain, const Rows& rows, int64_t first_row) {
  int count = int(chain.phases.size());
  if (chain.phases.back().at_wanted && rows.wanted_count == 0) --count;
  ChainArgs g{chain.phases_there,
              count,
              chain.embed ? chain.embed->table : StoredTableArgs{},
              chain.embed_keeps,
              chain.embed_leaves,
              rows,
              first_row,
              chain.words_there,
              chain.words,
              chain.state,
              *chain.shape(rows.rows)};
  if (chain.embed) g.table.y = chain.embed->y;
  rows.rows > 1 ? launch<kFewRows>(g, chain.blocks) : launch<1>(g, chain.blocks);
}

}  // namespace mmfree::cuda::decode
