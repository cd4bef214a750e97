#include <algorithm>
#include <climits>
#include <map>

#include "core/cuda/decode_chain_phase.cuh"

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
  const int rows = kRows > 1 ? g.rows.rows : 1;
  Walk w{g, memory, reduce, g.words + set * set_words};
  if (g.embed_keeps >= 0) embed_rows(w);
  clear_words(g.words + (1 - set) * set_words, g.plane, before.rows[1 - set]);
  for (int phase = 0; phase < g.count; ++phase) {
    // All warps of a block begin a phase together: in other forms of this kernel a step then took 1 to 2 % less, see
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
    for (Phase& p : chain_.phases) set_counts(p);
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
    return l.matrix == kSum ? &p.sum_leaves : &p.outputs[l.matrix].leaves;
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
    p.header = int(sizeof(Phase)) + norm_weights(p.norm) * p.norm.d * 4;
    for (int m = 0; m < p.group.count; ++m)
      copy_bytes(&p.scale[m], Device::cpu, p.group.matrices[m].scale, Device::cuda, sizeof(float));
    for (int i = 1; i < kMostMatrices; ++i)
      p.first[i] = p.group.finish == Finish::store && i < p.group.count ? p.first[i - 1] + p.group.matrices[i - 1].rows
                                                                        : INT_MAX;
    p.a = find(p.norm.a), p.b = find(p.norm.b);
    p.keeps = -1;
    const int number = int(chain_.phases.size());
    if (p.norm.x) p.keeps = keep(p.norm.x, p.norm.d, {number, kSum});
    for (int m = 0; m < p.group.count; ++m) {
      Phase::Output& out = p.outputs[m];
      out.passes = -1;
      const bool scan = p.group.finish == Finish::scan;
      if (scan ? m == 1 : p.group.finish == Finish::glu && m == 1) continue;
      const Matrix& matrix = p.group.matrices[m];
      const bool is_h = scan && m == 0;
      out.y = is_h ? p.group.h : matrix.y, out.stride = is_h ? matrix.rows : matrix.stride;
      written_[out.y] = {number, m};
      if (p.at_wanted) continue;
      out.passes = chain_.words;
      values_[out.y] = {{Place::passed, chain_.words}, matrix.rows};
      chain_.words += padded(matrix.rows);
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

  /// Bytes of a unit's weights.
  static int unit(const Phase& p) { return parts_of(p.group.finish) * p.group.words * 4; }

  /// How a phase's units are divided.
  void set_counts(Phase& p) const {
    p.per_block = p.units / chain_.blocks, p.left = p.units % chain_.blocks;
    for (int few : {0, 1}) {
      const int bytes = chain_.shapes[few] ? chain_.shapes[few]->stage_bytes : 0;
      p.first_count[few] = (bytes - p.header) / unit(p), p.count[few] = bytes / unit(p);
    }
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
    ChainShape s{rows > 1, 0, 0, 0, 0, chain_.kept, 0};
    const auto units = [&](const Phase& p) { return int(ceil_div(p.units, chain_.blocks)); };
    for (const Phase& p : chain_.phases) {
      const int all = p.header + units(p) * unit(p), some = p.header + std::min(units(p), kWarps) * unit(p);
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
      const int left = units(p) - (s.stage_bytes - p.header) / unit(p), each = s.stage_bytes / unit(p);
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
