#include "core/cuda/common.cuh"
#include "core/ops/sample.h"
#include "core/rng.h"
#include "core/sampling.h"

/// One block chooses the token of one row, whose distances it holds in shared memory if they fit; a thread takes four
/// tokens at a time. Tokens are ranked by their distance without sorting: the distance has 32 bits, of which bins of
/// the first 11 count tokens and add masses; the bin in which a wanted number or sum is reached is divided further by
/// the next 11 bits, and that one by the last 10. All sums are integers, so atomic additions give the same bits in any
/// order.
namespace mmfree::cuda {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / kWarp, kBins = 2048;
constexpr int kFirst = 21, kSecond = 10;  // bits behind those of the first and the second division

/// Numbers of tokens and sums of masses before a bin.
struct Before {
  uint64_t mass[kBins + 1];
  uint32_t count[kBins + 1];
};

struct alignas(16) Shared {
  Before first, rest;
  uint32_t count[kBins], low[kBins], high[kBins];  ///< of each bin; masses as their lower 15 bits and the others
  uint64_t masses[kWarps];
  uint32_t counts[kWarps];
  float tops[kWarps];
  int ids[kWarps];
  int found;
};

/// A place in the ranking: a distance, what comes before all tokens of that distance, and how many of them are taken.
struct Cut {
  uint32_t distance;
  uint64_t before;
  uint32_t taken;
  __device__ uint64_t mass() const { return before + uint64_t(taken) * token_mass(distance); }
};

class Row {
 public:
  /// `held` [V, rounded up to fours]: memory for the distances, or null: they are computed again where they are needed.
  __device__ Row(const SampleArgs& g, Shared& s, uint32_t* held)
      : g_(g),
        s_(s),
        held_(held),
        row_(g.rows[blockIdx.x]),
        logits_(g.logits + blockIdx.x * g.vocab),
        seen_(g.seen ? g.seen + blockIdx.x * ((g.vocab + 31) / 32) : nullptr),
        vocab_(int(g.vocab)),
        in_fours_(g.vocab % 4 == 0 && reinterpret_cast<uintptr_t>(g.logits) % 16 == 0) {}

  __device__ int token() {
    const int best = find_top();
    if (best < 0 || row_.per_unit == 0) return best;
    if (row_.top_k)
      fill_bins<true, true>(kFirst, 0, 32);
    else
      fill_bins<false, true>(kFirst, 0, 32);
    add_bins(s_.first);
    uint64_t total = s_.first.mass[kBins];
    if (row_.top_k && row_.top_k < uint32_t(vocab_)) total = cut<false>(row_.top_k).mass();
    if (row_.top_p < 1) {
      const auto need = uint64_t(ceil(__dmul_rn(row_.top_p, double(total))));
      total = cut<true>(min(max(need, uint64_t(1)), total)).mass();
    }
    if (row_.farthest != kFarthest) total = min(total, mass_up_to(row_.farthest));
    uint32_t words[4] = {uint32_t(row_.index), uint32_t(row_.index >> 32), uint32_t(row_.stream),
                         uint32_t(row_.stream >> 32)};
    philox_rounds(words, uint32_t(row_.key), uint32_t(row_.key >> 32));
    const uint64_t target = scaled_random(uint64_t(words[0]) << 32 | words[1], total);
    const Cut at = cut<true>(target + 1);
    return id_of(at.distance, at.taken);
  }

  /// One thread: what the choice of a token changes.
  __device__ void finish(int token) {
    const int r = int(blockIdx.x);
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
  /// Calls body(v) for the first of every four tokens of this thread.
  template <class Body>
  __device__ void each_four(Body&& body) const {
#pragma unroll 4
    for (int v = 4 * int(threadIdx.x); v < vocab_; v += 4 * kThreads) body(v);
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
  template <bool kFirstTime = false>
  __device__ void distances(int v, uint32_t (&d)[4]) const {
    if (kFirstTime || !held_) {
      float x[4];
      load(v, x);
      penalise(v, x);
#pragma unroll
      for (int i = 0; i < 4; ++i) d[i] = token_distance(x[i], top_, row_.per_unit);
      if (kFirstTime && held_) *reinterpret_cast<uint4*>(held_ + v) = {d[0], d[1], d[2], d[3]};
    } else {
      const uint4 four = *reinterpret_cast<const uint4*>(held_ + v);
      d[0] = four.x, d[1] = four.y, d[2] = four.z, d[3] = four.w;
    }
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
    top_ = top;
    return bad || !(top > -INFINITY) ? -1 : best;
  }

  /// Masses, and with kCounts numbers, of the bins at bits `behind` and up, of the tokens whose distance has `prefix`
  /// above bit `above`.
  template <bool kCounts, bool kFirstTime = false>
  __device__ void fill_bins(int behind, uint32_t prefix, int above) {
    for (int b = threadIdx.x; b < kBins; b += kThreads) s_.count[b] = s_.low[b] = s_.high[b] = 0;
    __syncthreads();
    each_four([&](int v) {
      uint32_t distance[4];
      distances<kFirstTime>(v, distance);
#pragma unroll
      for (const uint32_t d : distance) {
        if (!kFirstTime && d >> above != prefix) continue;
        const uint32_t bin = d >> behind & (kBins - 1), mass = token_mass(d);
        if (kCounts) atomicAdd(&s_.count[bin], 1u);
        if (mass == 0) continue;
        atomicAdd(&s_.low[bin], mass & 0x7fffu);
        atomicAdd(&s_.high[bin], mass >> 15);
      }
    });
    __syncthreads();
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
    const auto mass_of = [&](int b) { return (uint64_t(s_.high[b]) << 15) + s_.low[b]; };
    const uint64_t left = mass_of(bin);
    const uint32_t left_count = s_.count[bin];
    uint64_t mass = left + mass_of(bin + 1);
    uint32_t count = left_count + s_.count[bin + 1];
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

  /// The bin in which `need` is reached, behind what came before the whole division.
  template <bool kMass>
  __device__ int bin_of(const Before& sums, uint64_t mass, uint32_t count, uint64_t need) {
    for (int b = threadIdx.x; b < kBins; b += kThreads) {
      const uint64_t before = kMass ? mass + sums.mass[b] : count + sums.count[b];
      const uint64_t behind = kMass ? mass + sums.mass[b + 1] : count + sums.count[b + 1];
      if (before < need && need <= behind) s_.found = b;
    }
    __syncthreads();
    const int bin = s_.found;
    __syncthreads();
    return bin;
  }

  /// Where the sum of masses, or the number of tokens, in ranked order reaches `need`, from 1 to that of all.
  template <bool kMass>
  __device__ Cut cut(uint64_t need) {
    int bin = bin_of<kMass>(s_.first, 0, 0, need);
    uint64_t mass = s_.first.mass[bin];
    uint32_t count = s_.first.count[bin], prefix = uint32_t(bin);
    fill_bins<!kMass>(kSecond, prefix, kFirst);
    add_bins(s_.rest);
    bin = bin_of<kMass>(s_.rest, mass, count, need);
    mass += s_.rest.mass[bin], count += s_.rest.count[bin];
    prefix = prefix << 11 | uint32_t(bin);
    fill_bins<!kMass>(0, prefix, kSecond);
    add_bins(s_.rest);
    // The last division has 1024 bins: the bits above them repeat the prefix' lowest.
    bin = bin_of<kMass>(s_.rest, mass, count, need);
    mass += s_.rest.mass[bin], count += s_.rest.count[bin];
    Cut at{prefix << kSecond | (uint32_t(bin) & ((1u << kSecond) - 1)), mass, 0};
    if constexpr (kMass) {
      const uint32_t each = token_mass(at.distance);
      at.taken = uint32_t((need - mass + each - 1) / each);
    } else {
      at.taken = uint32_t(need - count);
    }
    return at;
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
    __syncthreads();
    return mass;
  }

  /// The id of the n-th token, from 1, with this distance; there are that many. Each warp counts in a stretch of its
  /// own, then the one that has it looks for it.
  __device__ int id_of(uint32_t wanted, uint32_t n) {
    constexpr int kFours = 4 * kWarp;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int stretch = (vocab_ + kFours * kWarps - 1) / (kFours * kWarps) * kFours,
              end = min(vocab_, (warp + 1) * stretch);
    const auto same = [&](int v) {  // a bit for each of four
      uint32_t d[4] = {}, bits = 0;
      if (v >= end) return bits;
      distances(v, d);
#pragma unroll
      for (int i = 0; i < 4; ++i) bits |= uint32_t(d[i] == wanted && v + i < vocab_) << i;
      return bits;
    };
    uint32_t count = 0;
    for (int v = warp * stretch + 4 * lane; v < end; v += kFours) count += uint32_t(__popc(same(v)));
    count = __reduce_add_sync(0xffffffffu, count);
    if (lane == 0) s_.counts[warp] = count;
    __syncthreads();
    const uint32_t before = __reduce_add_sync(0xffffffffu, lane < warp ? s_.counts[lane] : 0);
    if (before < n && n <= before + count) {
      uint32_t left = n - before;
      for (int first = warp * stretch; first < end; first += kFours) {
        const uint32_t bits = same(first + 4 * lane), here = uint32_t(__popc(bits));
        uint32_t upto = here;
#pragma unroll
        for (int width = 1; width < kWarp; width *= 2) {
          const uint32_t other = __shfl_up_sync(0xffffffffu, upto, width);
          if (lane >= width) upto += other;
        }
        if (upto - here < left && left <= upto)
          s_.found = first + 4 * lane + int(__fns(bits, 0, int(left - (upto - here))));
        const uint32_t all = __shfl_sync(0xffffffffu, upto, kWarp - 1);
        if (left <= all) break;
        left -= all;
      }
    }
    __syncthreads();
    return s_.found;
  }

  const SampleArgs& g_;
  Shared& s_;
  uint32_t* held_;
  const SampleRow row_;
  const float* logits_;
  const uint32_t* seen_;
  int vocab_;
  bool in_fours_;  ///< logits can be read so
  float top_ = 0;
};

__global__ void __launch_bounds__(kThreads) sample_rows(const __grid_constant__ SampleArgs g, bool hold) {
  extern __shared__ uint4 shared[];
  begin_kernel();
  Shared* const own = reinterpret_cast<Shared*>(shared);
  Row row(g, *own, hold ? reinterpret_cast<uint32_t*>(own + 1) : nullptr);
  const int token = row.token();
  __syncthreads();  // nobody reads `seen` any more
  if (threadIdx.x == 0) row.finish(token);
}

}  // namespace

void sample(const SampleArgs& g) {
  static const size_t most = [] {
    int device = 0, bytes = 0;
    check(cudaGetDevice(&device), "sample");
    check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "sample");
    check(cudaFuncSetAttribute(sample_rows, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "sample");
    return size_t(bytes);
  }();
  const size_t held = size_t(ceil_div(g.vocab, 4)) * 4 * sizeof(uint32_t);
  const bool hold = sizeof(Shared) + held <= most;
  launch_kernel(sample_rows, {unsigned(g.count), kThreads, sizeof(Shared) + (hold ? held : 0)}, g, hold);
  check_launch("sample");
}

}  // namespace mmfree::cuda
