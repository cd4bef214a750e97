#pragma once
#include "core/cuda/decode_chain.h"
#include "core/cuda/decode_finish.cuh"
#include "core/cuda/hopper.cuh"
#include "core/cuda/table.cuh"

/// Parts of the kernel of decode_chain.cu.
namespace mmfree::cuda::decode {

constexpr int kWarps = kThreads / kWarp;         // that compute
constexpr int kChainThreads = kThreads + kWarp;  // and one that loads
constexpr int kMostStages = 8;

struct ChainArgs {
  const Phase* phases;
  int count;
  StoredTableArgs table;
  int embed_keeps, embed_leaves;
  Rows rows;
  int64_t first_row;
  uint32_t* words;  ///< [2][kFewRows][plane]
  int64_t plane;
  ChainState* state;
  ChainShape shape;
};

/// A value that one block passes to all others is a word that is not kAbsent. Readers ask for it until it is there: so
/// a value takes one way through the L2 cache, without a fence and a flag behind it.
constexpr uint32_t kAbsent = 0xffffffffu;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ inline void pass(uint32_t* to, float value) {
  uint32_t word = __float_as_uint(value);
  if (word == kAbsent) word = 0x7fffffffu;  // a NaN
  asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(to), "r"(word) : "memory");
}
__device__ inline uint4 passed(const uint32_t* from) {
  uint4 x;
  asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(from)
               : "memory");
  return x;
}
__device__ inline bool absent(const uint4& x) {
  return x.x == kAbsent || x.y == kAbsent || x.z == kAbsent || x.w == kAbsent;
}

constexpr uint32_t kPatience = 1u << 26;  // tries, at least ten seconds: a block that fails must not hang the GPU

/// Puts passed values of a row, of b too unless it is null, to shared memory. A thread gets the columns that it reads
/// in a norm.
__device__ inline void receive(int d, const uint32_t* a, float* x, const uint32_t* b, float* y) {
  constexpr int kAtOnce = 3, kStride = 4 * kThreads;
  for (int first = 4 * int(threadIdx.x); first < d; first += kAtOnce * kStride) {
    uint4 left[kAtOnce], right[kAtOnce];
    bool missing = true;
    for (uint32_t tries = 0; missing; ++tries) {
      if (tries == kPatience) __trap();
      missing = false;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i * kStride >= d) break;
        if (a) left[i] = passed(a + first + i * kStride);
        if (b) right[i] = passed(b + first + i * kStride);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i * kStride >= d) break;
        missing |= (a && absent(left[i])) || (b && absent(right[i]));
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i * kStride >= d) break;
      if (a) *reinterpret_cast<uint4*>(x + first + i * kStride) = left[i];
      if (b) *reinterpret_cast<uint4*>(y + first + i * kStride) = right[i];
    }
  }
}

/// A block's shared memory: stages, codes [rows][branches][block_columns(k)], x and y of a norm, what is kept of each
/// row, steps [rows][branches], and the barriers of the stages.
struct ChainMemory {
  uint8_t* stages;
  int8_t* codes;
  float *x, *y, *kept, *steps;
  uint32_t barriers;
  __device__ ChainMemory(uint8_t* from, const ChainShape& s, int rows) {
    stages = from;
    codes = reinterpret_cast<int8_t*>(stages + s.stages * s.stage_bytes);
    x = reinterpret_cast<float*>(codes + rows * s.code_bytes);
    y = x + s.columns;
    kept = y + s.columns;
    steps = kept + rows * s.kept;
    barriers = hopper::address(steps + rows * kMostMatrices);
  }
  __device__ uint32_t full(int stage) const { return barriers + stage * 8; }
  __device__ uint32_t empty(int stage) const { return barriers + (kMostStages + stage) * 8; }
  /// A warp does not read a stage any more.
  __device__ void release(int stage) const {
    __syncwarp();
    if (threadIdx.x % kWarp == 0) hopper::barrier_arrive(empty(stage), 0);
  }
};

/// A block's units of a phase in the entries of the ring that they take. The first entry begins with the phase itself
/// and the norm's weights; weights of units follow, those of each part together.
struct Entries {
  int next, end;      ///< first unit of the entry; behind the last one of the block
  int header, count;  ///< bytes before the weights; units of the entry
  int later;          ///< units that another entry holds
  __device__ Entries(const Phase& p, int shape) {
    const int block = int(blockIdx.x);
    next = block * p.per_block + min(block, p.left), end = next + p.per_block + (block < p.left);
    header = p.header, later = p.count[shape];
    count = min(end - next, p.first_count[shape]);
  }
  /// Whether there is another entry, which becomes this one.
  __device__ bool advance() {
    next += count, header = 0;
    count = min(end - next, later);
    return next < end;
  }
};

/// A place in the ring.
struct ChainRing {
  int stage = 0, parity = 0;
  __device__ void next(int stages) {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

/// Copies `count` rows of packed weights. Returns where the next ones go. No weight is read twice in a step, so they
/// are the first to leave the L2 cache.
__device__ inline uint32_t load_rows(uint32_t to, const Matrix& m, int words, int row, int count, uint32_t barrier) {
  const int bytes = count * words * 4;
  if (bytes > 0) hopper::load_bytes_once(to, m.codes + int64_t(row) * words, bytes, barrier);
  return to + bytes;
}

/// Starts the copies of an entry.
__device__ inline void load_entry(const Phase* phase, const Entries& e, uint32_t to, uint32_t barrier) {
  const Phase& p = *phase;
  hopper::barrier_expect(barrier, e.header + e.count * parts_of(p.group.finish) * p.group.words * 4);
  if (e.header) {
    hopper::load_bytes(to, phase, sizeof(Phase), barrier);
    to += sizeof(Phase);
    NormWeights(p.norm).each([&](const float* from) {
      hopper::load_bytes(to, from, p.norm.d * 4, barrier);
      to += p.norm.d * 4;
    });
  }
  const Group& g = p.group;
  for (int m = 0; m < g.count; ++m) {
    if (p.group.finish != Finish::store) {
      to = load_rows(to, g.matrices[m], g.words, e.next, e.count, barrier);
    } else {
      const int first = max(e.next, p.first[m]), end = min(e.next + e.count, p.first[m] + g.matrices[m].rows);
      to = load_rows(to, g.matrices[m], g.words, first - p.first[m], max(0, end - first), barrier);
    }
  }
}

/// The loading thread: all entries of all phases, one after the other.
class ChainLoader {
 public:
  __device__ ChainLoader(const ChainArgs& g, const ChainMemory& memory)
      : g_(g), memory_(memory), at_(g.phases[0], g.shape.number) {}

  /// Goes on until `most` entries have been loaded.
  __device__ void load(int most) {
    for (; phase_ < g_.count && entry_ < most; ++entry_) {
      if (entry_ >= g_.shape.stages) hopper::barrier_wait(memory_.empty(ring_.stage), ring_.parity ^ 1);
      const uint32_t to = hopper::address(memory_.stages + ring_.stage * g_.shape.stage_bytes);
      load_entry(g_.phases + phase_, at_, to, memory_.full(ring_.stage));
      ring_.next(g_.shape.stages);
      if (!at_.advance() && ++phase_ < g_.count) at_ = Entries(g_.phases[phase_], g_.shape.number);
    }
  }

 private:
  const ChainArgs& g_;
  const ChainMemory& memory_;
  ChainRing ring_;
  Entries at_;
  int phase_ = 0, entry_ = 0;
};

#endif

}  // namespace mmfree::cuda::decode
