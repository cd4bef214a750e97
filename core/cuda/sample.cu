#include "core/cuda/common.cuh"
#include "core/ops/sample.h"
#include "core/rng.h"
#include "core/sampling.h"

/// A team of blocks chooses the token of one row, each block having a part of the tokens, whose distances it holds in
/// shared memory if they fit; a thread takes four tokens at a time. With few rows a team is a cluster of several
/// blocks, else one block. Tokens are ranked by their distance without sorting: the distance has 32 bits, of which bins
/// of the first 11 count tokens and add masses; the bin in which a wanted number or sum is reached is divided further
/// by the next 11 bits, and that one by the last 10. All sums are integers, so atomic additions give the same bits in
/// any order.
namespace mmfree::cuda {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / kWarp, kBins = 2048;
constexpr int kFirst = 21, kSecond = 10;  // bits behind those of the first and the second division

/// Numbers of tokens and sums of masses before a bin.
struct Before {
  uint64_t mass[kBins + 1];
  uint32_t count[kBins + 1];
};

/// Of each bin: tokens, and masses as their lower 15 bits and the others.
struct Bins {
  uint32_t low[kBins], high[kBins], count[kBins];
};

template <int kBlocks>
struct alignas(16) Shared {
  Before first, rest;
  Bins bins[kBlocks > 1 ? 2 : 1];  ///< of this block's tokens; of the team's
  uint64_t masses[kWarps];
  uint32_t counts[kWarps];
  float tops[kWarps];
  int ids[kWarps];
  int found;
  // What each block of the team says of its part.
  float team_tops[kBlocks];
  int team_ids[kBlocks];
  uint32_t team_counts[kBlocks];
  uint64_t team_masses[kBlocks];
};

/// Tokens of each block's part but the last one's: whole fours.
template <int kBlocks>
__host__ __device__ int part_of(int vocab) {
  return (vocab + 4 * kBlocks - 1) / (4 * kBlocks) * 4;
}

/// The blocks that choose a row's token, on Hopper a cluster of more than one.
template <int kBlocks>
struct Team {
  /// This block's number.
  static __device__ int rank() { return kBlocks > 1 ? int(blockIdx.x) % kBlocks : 0; }
  /// All threads of the team wait for each other, and see what the others wrote before.
  static __device__ void sync() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if constexpr (kBlocks > 1) return hopper_sync();
#endif
    __syncthreads();
  }
  /// Stores to the same place in block `block`'s shared memory, and loads from there.
  template <class T>
  static __device__ T* at(T* place, int block) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if constexpr (kBlocks > 1) {
      T* there;
      asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(place), "r"(block));
      return there;
    }
#endif
    return place;
  }

 private:
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  static __device__ void hopper_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
  }
#endif
};

/// A place in the ranking: a distance, what comes before all tokens of that distance, and how many of them are taken.
struct Cut {
  uint32_t distance;
  uint64_t before;
  uint32_t taken;
  __device__ uint64_t mass() const { return before + uint64_t(taken) * token_mass(distance); }
};

template <int kBlocks>
class Row {
 public:
  /// `held` [part_of(V)]: memory for the distances of this block's part, or null: they are computed again where they
  /// are needed.
  __device__ Row(const SampleArgs& g, Shared<kBlocks>& s, uint32_t* held)
      : g_(g),
        s_(s),
        held_(held),
        number_(int(blockIdx.x) / kBlocks),
        row_(g.rows[number_]),
        logits_(g.logits + number_ * g.vocab),
        seen_(g.seen ? g.seen + number_ * ((g.vocab + 31) / 32) : nullptr),
        vocab_(int(g.vocab)),
        first_(Team::rank() * part_of<kBlocks>(vocab_)),
        end_(min(vocab_, first_ + part_of<kBlocks>(vocab_))),
        in_fours_(g.vocab % 4 == 0 && reinterpret_cast<uintptr_t>(g.logits) % 16 == 0) {}

  /// There is one copy of each part of the code: its instructions are not in the cache when a step begins, and reading
  /// them takes longer than what they do.
  __device__ int token() {
    const int best = find_top();
    if (best < 0 || row_.per_unit == 0) return best;
    Wanted wanted{};
    Cut at{};
    uint32_t prefix = 0, count = 0;
    uint64_t mass = 0;
#pragma unroll 1
    for (int level = 0;;) {
      Before& sums = level ? s_.rest : s_.first;
      if (level || wanted.stage == 0) {
        fill_bins(level, prefix);
        add_bins(sums);
      }
      if (level == 0) {
        want_next(wanted, wanted.stage ? at.mass() : sums.mass[kBins]);
        prefix = count = 0, mass = 0;
      }
      const int bin = bin_of(sums, wanted, mass, count);
      mass += sums.mass[bin], count += sums.count[bin];
      // The last division has 1024 bins: the bits above them repeat the prefix' lowest.
      prefix = level < 2 ? prefix << 11 | uint32_t(bin) : prefix << kSecond | (uint32_t(bin) & ((1u << kSecond) - 1));
      if (++level < 3) continue;
      const uint32_t each = wanted.by_mass ? token_mass(prefix) : 1;
      at = {prefix, mass, uint32_t((wanted.need - (wanted.by_mass ? mass : count) + each - 1) / each)};
      if (wanted.stage == kChoice) return id_of(at.distance, at.taken);
      level = 0;
    }
  }

  /// One thread: what the choice of a token changes.
  __device__ void finish(int token) {
    const int r = number_;
    g_.tokens[r] = token;
    if (token >= 0) {
      g_.rows[r].index = row_.index + 1;
      if (g_.seen) g_.seen[r * ((g_.vocab + 31) / 32) + token / 32] |= 1u << token % 32;
    }
    if (!g_.history) return;
    ++g_.positions[r];
    const int64_t taken = g_.taken[r]++;
    *const_cast<volatile int32_t*>(g_.history + taken % g_.steps * g_.count + r) = token;
    // The row goes on, so that the kernels that follow have a token; the host will see that there is none.
    if (token < 0) g_.tokens[r] = 0;
  }

 private:
  using Team = cuda::Team<kBlocks>;

  /// Calls body(v) for the first of every four tokens of this thread.
  template <class Body>
  __device__ void each_four(Body&& body) const {
#pragma unroll 1
    for (int v = first_ + 4 * int(threadIdx.x); v < end_; v += 4 * kThreads) body(v);
  }
  /// The logits of four tokens, those behind the last one -infinity: they count as farthest and are never chosen.
  __device__ void load(int v, float (&x)[4]) const {
    if (in_fours_) return cuda::load(x, logits_ + v);
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = v + i < vocab_ ? logits_[v + i] : -INFINITY;
  }
  __device__ void penalise(int v, float (&x)[4]) const {
    if (!seen_) return;
    const uint32_t bits = seen_[v / 32] >> v % 32;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (bits >> i & 1) x[i] = x[i] > 0 ? x[i] / row_.penalty : __fmul_rn(x[i], row_.penalty);
  }
  /// The distances of four tokens. The first time they are computed, and held if there is memory.
  __device__ void distances(int v, uint32_t (&d)[4], bool first_time = false) const {
    if (first_time || !held_) {
      float x[4];
      load(v, x);
      penalise(v, x);
#pragma unroll
      for (int i = 0; i < 4; ++i) d[i] = token_distance(x[i], top_, row_.per_unit);
      if (first_time && held_) *reinterpret_cast<uint4*>(held_ + (v - first_)) = {d[0], d[1], d[2], d[3]};
    } else {
      const uint4 four = *reinterpret_cast<const uint4*>(held_ + (v - first_));
      d[0] = four.x, d[1] = four.y, d[2] = four.z, d[3] = four.w;
    }
  }

  /// Tells all blocks of the team what this one's value is. They have it after Team::sync.
  template <class T>
  __device__ void tell(T* values, T value) {
    if (threadIdx.x < kBlocks) *Team::at(values + Team::rank(), int(threadIdx.x)) = value;
  }

  /// The largest logit and its lowest id; -1 if there is no such.
  __device__ int find_top() {
    float top = -INFINITY;
    int best = 0x7fffffff, bad = 0;
    each_four([&](int v) {
      float x[4];
      load(v, x);
#pragma unroll
      for (float raw : x) bad |= !(raw <= 3.402823466e38f);
      penalise(v, x);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (x[i] > top) top = x[i], best = v + i;
    });
    const auto take = [&](float other, int id) {
      if (other > top || (other == top && id < best)) top = other, best = id;
    };
    const auto take_lanes = [&] {
#pragma unroll
      for (int width = kWarp / 2; width; width /= 2)
        take(__shfl_xor_sync(0xffffffffu, top, width), __shfl_xor_sync(0xffffffffu, best, width));
    };
    take_lanes();
    const int lane = threadIdx.x % kWarp;
    if (lane == 0) s_.tops[threadIdx.x / kWarp] = top, s_.ids[threadIdx.x / kWarp] = best;
    bad = __syncthreads_or(bad);
    static_assert(kWarps == kWarp);
    top = s_.tops[lane], best = s_.ids[lane];
    take_lanes();
    if constexpr (kBlocks > 1) {
      tell(s_.team_tops, top), tell(s_.team_ids, bad ? -1 : best);
      Team::sync();
      for (int b = 0; b < kBlocks; ++b) {
        bad |= s_.team_ids[b] < 0;
        take(s_.team_tops[b], s_.team_ids[b]);
      }
    }
    top_ = top;
    return bad || !(top > -INFINITY) ? -1 : best;
  }

  /// What is looked for: where the sum of masses, or the number of tokens, in ranked order reaches `need`, from 1 to
  /// that of all.
  struct Wanted {
    int stage;  ///< 0: nothing yet; then the cut of top_k, that of top_p, and the choice
    bool by_mass;
    uint64_t need;
  };
  static constexpr int kChoice = 3;

  /// The next thing to look for, in tokens whose masses' sum is `total`.
  __device__ void want_next(Wanted& w, uint64_t total) {
    if (++w.stage == 1 && !(row_.top_k && row_.top_k < uint32_t(vocab_))) ++w.stage;
    if (w.stage == 2 && !(row_.top_p < 1)) ++w.stage;
    w.by_mass = w.stage > 1;
    if (w.stage == 1) {
      w.need = row_.top_k;
    } else if (w.stage == 2) {
      const auto need = uint64_t(ceil(__dmul_rn(row_.top_p, double(total))));
      w.need = min(max(need, uint64_t(1)), total);
    } else {
      if (row_.farthest != kFarthest) total = min(total, mass_up_to(row_.farthest));
      uint32_t words[4] = {uint32_t(row_.index), uint32_t(row_.index >> 32), uint32_t(row_.stream),
                           uint32_t(row_.stream >> 32)};
      philox_rounds(words, uint32_t(row_.key), uint32_t(row_.key >> 32));
      w.need = scaled_random(uint64_t(words[0]) << 32 | words[1], total) + 1;
    }
  }

  /// Numbers and masses of the bins of a level, of the tokens whose distance has `prefix` above that level's bits.
  __device__ void fill_bins(int level, uint32_t prefix) {
    Bins& own = s_.bins[0];
    const int behind = level == 0 ? kFirst : level == 1 ? kSecond : 0, above = level == 1 ? kFirst : kSecond;
    for (int b = threadIdx.x; b < kBins; b += kThreads) own.count[b] = own.low[b] = own.high[b] = 0;
    __syncthreads();
    each_four([&](int v) {
      uint32_t distance[4];
      distances(v, distance, level == 0);
#pragma unroll
      for (const uint32_t d : distance) {
        if (level && d >> above != prefix) continue;
        const uint32_t bin = d >> behind & (kBins - 1), mass = token_mass(d);
        atomicAdd(&own.count[bin], 1u);
        if (mass == 0) continue;
        atomicAdd(&own.low[bin], mass & 0x7fffu);
        atomicAdd(&own.high[bin], mass >> 15);
      }
    });
    Team::sync();
    if constexpr (kBlocks > 1) share_bins();
  }

  /// Adds the bins of all blocks. Each block does a part of them for all.
  __device__ void share_bins() {
    constexpr int kPart = kBins / kBlocks;
    for (int i = threadIdx.x; i < 3 * kPart; i += kThreads) {
      const int word = i / kPart * kBins + Team::rank() * kPart + i % kPart;
      uint32_t* const parts = reinterpret_cast<uint32_t*>(s_.bins) + word;
      uint32_t sum = 0;
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) sum += *Team::at(parts, b);
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) *Team::at(parts + 3 * kBins, b) = sum;
    }
    Team::sync();
  }

  static __device__ uint64_t all_sum(uint64_t x) {
#pragma unroll
    for (int width = kWarp / 2; width; width /= 2) x += __shfl_xor_sync(0xffffffffu, x, width);
    return x;
  }

  /// The sums before each bin. A thread has two neighbouring bins.
  __device__ void add_bins(Before& to) {
    static_assert(kBins == 2 * kThreads);
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, bin = 2 * int(threadIdx.x);
    const Bins& bins = s_.bins[kBlocks > 1];
    const auto mass_of = [&](int b) { return (uint64_t(bins.high[b]) << 15) + bins.low[b]; };
    const uint64_t left = mass_of(bin);
    const uint32_t left_count = bins.count[bin];
    uint64_t mass = left + mass_of(bin + 1);
    uint32_t count = left_count + bins.count[bin + 1];
    const uint64_t own = mass;
    const uint32_t own_count = count;
#pragma unroll
    for (int width = 1; width < kWarp; width *= 2) {
      const uint64_t other = __shfl_up_sync(0xffffffffu, mass, width);
      const uint32_t others = __shfl_up_sync(0xffffffffu, count, width);
      if (lane >= width) mass += other, count += others;
    }
    if (lane == kWarp - 1) s_.masses[warp] = mass, s_.counts[warp] = count;
    __syncthreads();
    mass += all_sum(lane < warp ? s_.masses[lane] : 0);
    count += __reduce_add_sync(0xffffffffu, lane < warp ? s_.counts[lane] : 0);
    to.mass[bin] = mass - own, to.count[bin] = count - own_count;
    to.mass[bin + 1] = mass - own + left, to.count[bin + 1] = count - own_count + left_count;
    if (bin + 2 == kBins) to.mass[kBins] = mass, to.count[kBins] = count;
    __syncthreads();
  }

  /// The bin in which what is wanted is reached, behind what came before the whole division.
  __device__ int bin_of(const Before& sums, const Wanted& w, uint64_t mass, uint32_t count) {
#pragma unroll 1
    for (int b = threadIdx.x; b < kBins; b += kThreads) {
      const uint64_t before = w.by_mass ? mass + sums.mass[b] : count + sums.count[b];
      const uint64_t behind = w.by_mass ? mass + sums.mass[b + 1] : count + sums.count[b + 1];
      if (before < w.need && w.need <= behind) s_.found = b;
    }
    __syncthreads();
    const int bin = s_.found;
    __syncthreads();
    return bin;
  }

  /// The sum of the masses of tokens not behind `farthest`.
  __device__ uint64_t mass_up_to(uint32_t farthest) {
    uint64_t mass = 0;
    each_four([&](int v) {
      uint32_t distance[4];
      distances(v, distance);
#pragma unroll
      for (const uint32_t d : distance)
        if (d <= farthest) mass += token_mass(d);
    });
    mass = all_sum(mass);
    if (threadIdx.x % kWarp == 0) s_.masses[threadIdx.x / kWarp] = mass;
    __syncthreads();
    mass = all_sum(s_.masses[threadIdx.x % kWarp]);
    tell(s_.team_masses, mass);
    Team::sync();
    mass = 0;
    for (uint64_t part : s_.team_masses) mass += part;
    return mass;
  }

  /// The id of the n-th token, from 1, with this distance; there are that many. Only the team's first block gets it.
  /// Each warp counts in a stretch of its own, then the one that has it looks for it.
  __device__ int id_of(uint32_t wanted, uint32_t n) {
    constexpr int kFours = 4 * kWarp;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int stretch = (end_ - first_ + kFours * kWarps - 1) / (kFours * kWarps) * kFours,
              begin = first_ + warp * stretch, end = min(end_, begin + stretch);
    const auto same = [&](int v) {  // a bit for each of four
      uint32_t d[4] = {}, bits = 0;
      if (v >= end) return bits;
      distances(v, d);
#pragma unroll
      for (int i = 0; i < 4; ++i) bits |= uint32_t(d[i] == wanted && v + i < vocab_) << i;
      return bits;
    };
    uint32_t count = 0;
    for (int v = begin + 4 * lane; v < end; v += kFours) count += uint32_t(__popc(same(v)));
    count = __reduce_add_sync(0xffffffffu, count);
    if (lane == 0) s_.counts[warp] = count;
    __syncthreads();
    uint32_t before = __reduce_add_sync(0xffffffffu, lane < warp ? s_.counts[lane] : 0);
    if constexpr (kBlocks > 1) {
      tell(s_.team_counts, __reduce_add_sync(0xffffffffu, s_.counts[lane]));
      Team::sync();
      for (int b = 0; b < Team::rank(); ++b) before += s_.team_counts[b];
    }
    if (before < n && n <= before + count) {
      uint32_t left = n - before;
      for (int from = begin; from < end; from += kFours) {
        const uint32_t bits = same(from + 4 * lane), here = uint32_t(__popc(bits));
        uint32_t upto = here;
#pragma unroll
        for (int width = 1; width < kWarp; width *= 2) {
          const uint32_t other = __shfl_up_sync(0xffffffffu, upto, width);
          if (lane >= width) upto += other;
        }
        if (upto - here < left && left <= upto)
          *Team::at(&s_.found, 0) = from + 4 * lane + int(__fns(bits, 0, int(left - (upto - here))));
        const uint32_t all = __shfl_sync(0xffffffffu, upto, kWarp - 1);
        if (left <= all) break;
        left -= all;
      }
    }
    Team::sync();
    return s_.found;
  }

  const SampleArgs& g_;
  Shared<kBlocks>& s_;
  uint32_t* held_;
  int number_;
  const SampleRow row_;
  const float* logits_;
  const uint32_t* seen_;
  int vocab_, first_, end_;  ///< tokens: all, and those of this block
  bool in_fours_;            ///< logits can be read so
  float top_ = 0;
};

template <int kBlocks>
__global__ void __launch_bounds__(kThreads) sample_rows(const __grid_constant__ SampleArgs g, bool hold) {
  extern __shared__ uint4 shared[];
  Team<kBlocks>::sync();  // all blocks have started: their memory can be written
  begin_kernel();
  auto* const own = reinterpret_cast<Shared<kBlocks>*>(shared);
  Row<kBlocks> row(g, *own, hold ? reinterpret_cast<uint32_t*>(own + 1) : nullptr);
  const int token = row.token();
  Team<kBlocks>::sync();  // nobody reads `seen` any more, nor another block's memory
  if (threadIdx.x == 0 && Team<kBlocks>::rank() == 0) row.finish(token);
}

template <int kBlocks>
void launch(const SampleArgs& g) {
  static const size_t most = [] {
    const size_t bytes = shared_memory();
    check(cudaFuncSetAttribute(sample_rows<kBlocks>, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)),
          "sample");
    return bytes;
  }();
  const size_t held = size_t(part_of<kBlocks>(int(g.vocab))) * sizeof(uint32_t);
  const bool hold = sizeof(Shared<kBlocks>) + held <= most;
  launch_kernel(sample_rows<kBlocks>,
                {unsigned(kBlocks * g.count), kThreads, sizeof(Shared<kBlocks>) + (hold ? held : 0), kBlocks}, g, hold);
  check_launch("sample");
}

}  // namespace

void sample(const SampleArgs& g) {
  if (is_hopper() && 8 * g.count <= multiprocessors())
    launch<8>(g);
  else if (is_hopper() && 2 * g.count <= multiprocessors())
    launch<2>(g);
  else
    launch<1>(g);
}

}  // namespace mmfree::cuda
