#pragma once
#include "core/cuda/norm_quant.cuh"

/// The arithmetic of norm_quant's backward kernel: what it knows of a row, and what it computes from that.
namespace mmfree::cuda::fused {

/// Inputs of the backward pass: one row at the columns of a chunk.
template <class L, Kind kKind, class S, class A>
struct Inputs {
  Chunk<kKind, S, A, L::width> source;
  Loaded<A, L::width> dout[L::branches], incoming;

  __device__ void load(const NormQuantBackwardArgs& p, int64_t n, int64_t k) {
    source.load(p.source, n, k, p.d);
#pragma unroll
    for (int b = 0; b < L::branches; ++b) take(dout[b], b < p.count ? p.branches[b].dout : nullptr, n * p.d + k);
    if constexpr (is_plain<kKind>) take(incoming, p.incoming, n * p.d + k);
  }
  static __device__ void take(Loaded<A, L::width>& to, const void* from, int64_t place) {
    if (from)
      to.load(static_cast<const A*>(from) + place);
    else
      to.clear();
  }
};

/// The inputs of two rows in shared memory. They are copied there without a register between, while the rows before are
/// computed. A thread copies and reads the columns that are its own, so nobody else waits for them. A vector takes
/// words of 16 bytes, and the words of all threads lie together. `others` are the douts and `incoming`.
template <class L, Kind kKind, class S, class A>
struct Stages {
  static constexpr int kWord = 16;
  static constexpr int kA = L::width * int(sizeof(S)) / kWord, kB = L::width * int(sizeof(A)) / kWord;  // words
  static constexpr bool has_b = kKind != Kind::rows && kKind != Kind::activation;
  static constexpr int kOthers = L::branches + is_plain<kKind>, kWords = kA + (has_b + kOthers) * kB;
  static constexpr size_t thread_bytes = L::kept ? 2 * L::held * kWords * kWord : 0;
  uint32_t first;  ///< address of this thread's first word

  __device__ explicit Stages(void* shared) : first(uint32_t(__cvta_generic_to_shared(shared)) + threadIdx.x * kWord) {}
  __device__ uint32_t at(int stage, int v, int word) const {
    return first + ((stage * L::held + v) * kWords + word) * blockDim.x * kWord;
  }
  __device__ uint32_t at_other(int stage, int v, int i) const { return at(stage, v, kA + (has_b + i) * kB); }
  static __device__ const A* other(const NormQuantBackwardArgs& p, int i) {
    return static_cast<const A*>(i == L::branches ? p.incoming : i < p.count ? p.branches[i].dout : nullptr);
  }
  /// Starts to copy row n, if there is one.
  template <class Each>
  __device__ void copy(const NormQuantBackwardArgs& p, int stage, int64_t n, Each&& each) const {
    if (n < p.n)
      each([&](int v, int64_t k) {
        const int64_t place = n * (kKind == Kind::glu ? p.source.stride : p.d) + k;
        copy_vector(at(stage, v, 0), static_cast<const S*>(p.source.a) + place);
        if constexpr (has_b) copy_vector(at(stage, v, kA), static_cast<const A*>(p.source.b) + place);
#pragma unroll
        for (int i = 0; i < kOthers; ++i)
          if (const A* from = other(p, i)) copy_vector(at_other(stage, v, i), from + n * p.d + k);
      });
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
  template <class T>
  static __device__ void copy_vector(uint32_t to, const T* from) {
    constexpr int kMine = kWord / int(sizeof(T));
#pragma unroll
    for (int i = 0; i < L::width / kMine; ++i)
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + i * blockDim.x * kWord), "l"(from + i * kMine)
                   : "memory");
  }
  /// Waits for all rows but the one that was copied last.
  static __device__ void wait() { asm volatile("cp.async.wait_group 1;" ::: "memory"); }
  __device__ void load_source(Inputs<L, kKind, S, A>& to, int stage, int v) const {
    load(to.source.a, at(stage, v, 0));
    if constexpr (has_b) load(to.source.b, at(stage, v, kA));
  }
  __device__ void load_douts(Inputs<L, kKind, S, A>& to, const NormQuantBackwardArgs& p, int stage, int v) const {
#pragma unroll
    for (int b = 0; b < L::branches; ++b) load_other(to.dout[b], p, stage, v, b);
  }
  __device__ void load_incoming(Inputs<L, kKind, S, A>& to, const NormQuantBackwardArgs& p, int stage, int v) const {
    if constexpr (is_plain<kKind>) load_other(to.incoming, p, stage, v, L::branches);
  }
  __device__ void load_other(Loaded<A, L::width>& to, const NormQuantBackwardArgs& p, int stage, int v, int i) const {
    if (other(p, i))
      load(to, at_other(stage, v, i));
    else
      to.clear();
  }
  template <class T>
  static __device__ void load(Loaded<T, L::width>& to, uint32_t from) {
    auto* const words = reinterpret_cast<uint4*>(&to.words);
#pragma unroll
    for (int i = 0; i < int(sizeof(to.words)) / kWord; ++i)
      asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(words[i].x), "=r"(words[i].y), "=r"(words[i].z), "=r"(words[i].w)
                   : "r"(from + i * blockDim.x * kWord));
  }
};

/// The rstd values of a row; 1 for a missing one.
template <class L, Kind kKind>
struct Stats {
  float r0, r1, r2;
  static __device__ Stats of(const NormQuantBackwardArgs& p, int64_t n) {
    const auto one = [n](const void* r) { return r ? static_cast<const float*>(r)[n] : 1.0f; };
    return {kKind == Kind::gate ? one(p.r0) : 1.0f, L::outer ? one(p.r1) : 1.0f, one(p.r2)};
  }
};

/// Column sums over the rows of a block, for the gradients of weights. Slots: one per branch, then `outer`, then the
/// gate weight. Kept layouts hold them in registers, others in `partial`.
template <class L, Kind kKind>
struct WeightSums {
  static constexpr int outer = L::branches, gate = outer + L::outer, slots = gate + (kKind == Kind::gate);
  float kept[L::kept ? slots : 1][L::held][L::width];
  float* partial;

  /// `partials` [blocks, slots, d] receives the sums of all blocks, or is null. `each` loops over the thread's columns.
  template <class Each>
  __device__ WeightSums(float* partials, int64_t d, Each&& each)
      : partial(partials ? partials + int64_t(blockIdx.x) * slots * d : nullptr) {
    const float none[L::width] = {};
#pragma unroll
    for (int s = 0; s < slots; ++s)
      if constexpr (L::kept) {
#pragma unroll
        for (int v = 0; v < L::held; ++v)
#pragma unroll
          for (int i = 0; i < L::width; ++i) kept[s][v][i] = 0;
      } else if (partial) {
        each([&](int, int64_t k) { store(partial + s * d + k, none); });
      }
  }
  /// `plus(i, sum)` returns the sum at column i plus the row's term.
  template <class Plus>
  __device__ void add(int slot, int v, int64_t k, int64_t d, Plus&& plus) {
    if constexpr (L::kept) {
#pragma unroll
      for (int i = 0; i < L::width; ++i) kept[slot][v][i] = plus(i, kept[slot][v][i]);
    } else if (partial) {
      float sum[L::width];
      load(sum, partial + slot * d + k);
#pragma unroll
      for (int i = 0; i < L::width; ++i) sum[i] = plus(i, sum[i]);
      store(partial + slot * d + k, sum);
    }
  }
  template <class In, class UHat>
  __device__ void add_branches(const NormQuantBackwardArgs& p, int v, int64_t k, const In& in, UHat&& u_hat) {
#pragma unroll
    for (int b = 0; b < L::branches; ++b) {
      if (!L::kept && b >= p.count) break;
      add(b, v, k, p.d, [&](int i, float sum) { return fmaf(in.dout[b][i], u_hat(i), sum); });
    }
  }
  template <class Each>
  __device__ void finish(int64_t d, Each&& each) {
    if constexpr (L::kept)
      if (partial)
        each([&](int v, int64_t k) {
#pragma unroll
          for (int s = 0; s < slots; ++s) store(partial + s * d + k, kept[s][v]);
        });
  }
};

/// Computes the gradients of the source from the gradient dx of a row: put<0>(that of a), and for gate and glu
/// put<1>(that of b). `mean` is mean(x · dx), for the gate's norm. `dweight`, out: the row's terms of the gate weight's
/// gradient. `f` is the source's function.
template <bool kSilu, Kind kKind, class S, class A, int W, class Put>
__device__ void source_gradient(const NormQuantBackwardArgs& p, const Chunk<kKind, S, A, W>& source,
                                const Loaded<A, W>& incoming, const Function<kKind, kSilu, W>& f, const float (&dx)[W],
                                float r0, const float (&weight)[W], float mean, float (&dweight)[W], Put&& put) {
  float da[W], db[W];
  if constexpr (is_plain<kKind>) {
#pragma unroll
    for (int i = 0; i < W; ++i) da[i] = __fadd_rn(dx[i], incoming[i]);
    put.template operator()<0>(da);
  } else if constexpr (kKind == Kind::gate) {
#pragma unroll
    for (int i = 0; i < W; ++i) {
      const float normed = source.a[i] * r0, t = dx[i] * f.value(p.source, i, source.b[i]);
      dweight[i] = __fmul_rn(t, normed);
      da[i] = f.is_silu(p.source) ? r0 * fmaf(t, weight[i], -(normed * mean)) : t;
      db[i] = dx[i] * normed * weight[i] * f.slope(p.source, i, source.b[i]);
    }
    put.template operator()<0>(da);
    put.template operator()<1>(db);
  } else {
    static_assert(kKind == Kind::glu || kKind == Kind::activation);
#pragma unroll
    for (int i = 0; i < W; ++i) {
      da[i] = dx[i] * (kKind == Kind::glu ? source.b[i] : 1.0f) * f.slope(p.source, i, source.a[i]);
      db[i] = dx[i] * f.value(p.source, i, source.a[i]);
    }
    put.template operator()<0>(da);
    if constexpr (kKind == Kind::glu) put.template operator()<1>(db);
  }
}

/// Rounds each branch's values at column k of row n with the bits of the forward kernel: the same products in the same
/// order, x without r0. `absmax` holds the magnitudes of x · outer · weight.
template <class A, class L, Kind kKind>
__device__ void store_branches(const NormQuantBackwardArgs& p, const float (&x)[L::width], const Weights<L, kKind>& w,
                               const uint32_t* absmax, const Stats<L, kKind>& row, int64_t n, int64_t k) {
  const float r01 = row.r0 * row.r1;
#pragma unroll
  for (int b = 0; b < L::branches; ++b) {
    if (b >= p.count || !p.branches[b].out) continue;
    const float scale = L::kept || p.branches[b].weight ? r01 * row.r2 : r01;
    float value[L::width];
#pragma unroll
    for (int i = 0; i < L::width; ++i) value[i] = x[i] * w.outer[i] * w.branch[b][i] * scale;
    const ActivationScale<float> q = activation_scale(__uint_as_float(absmax[b]) * scale);
    if (k == 0 && p.branches[b].step) static_cast<float*>(p.branches[b].step)[n] = q.step;
    store_branch<A>(p.branches[b], n * p.d + k, value, q);
  }
}

/// Intermediate values of one vector of columns: x̂ (x without an outer norm) and the sums of the branches' gradients.
/// In a kept layout either every branch has a weight or none has, so `s` holds the sum in both cases.
template <class L>
struct Columns {
  static constexpr bool mixed = !L::kept;
  float normed[L::width];
  float s[L::width];                 // Σ weight ⊙ dout
  float bare[mixed ? L::width : 1];  // Σ dout of the branches without a weight

  /// Computes x without r0 in `x`, and x̂ in `normed`. `f` is the source's function.
  template <class Source, class F>
  __device__ void normalise(const NormQuantBackwardArgs& p, const Source& source, const F& f,
                            const float (&gate)[L::width], float r01, float (&x)[L::width]) {
    source.x(p.source, f, gate, x);
#pragma unroll
    for (int i = 0; i < L::width; ++i) normed[i] = x[i] * r01;
  }
  template <class In, class W>
  __device__ void sum_branches(const NormQuantBackwardArgs& p, const In& in, const W& w) {
#pragma unroll
    for (int i = 0; i < L::width; ++i) {
      s[i] = 0;
      if constexpr (mixed) bare[i] = 0;
#pragma unroll
      for (int b = 0; b < L::branches; ++b)
        if (mixed && b < p.count && !p.branches[b].weight)
          bare[mixed ? i : 0] += in.dout[b][i];
        else
          s[i] += w.branch[b][i] * in.dout[b][i];
    }
  }
};

/// The reductions over a row that its gradient needs, all in one step over the block: Σ û s in every layout; Σ x̂² if a
/// gate and a block norm meet; Σ u · bare in layouts for mixed branches. All other means follow from these:
///
/// û = u r2, so mean(û²) = 1 − eps_inner r2². With c = mean(û s) the inner norm's part of du is r2 (s − û c), and
///   mean(u du) = c (1 − mean(û²)) + mean(u bare) = c eps_inner r2² + mean(u bare)          `outer_mean`
/// is mean(x̂ g) of the outer norm, or without one mean(x dx). With one, mean(x dx) is that times 1 − mean(x̂²).
template <class L, Kind kKind>
struct RowSums {
  static constexpr bool squares = kKind == Kind::gate && L::outer, mixed = Columns<L>::mixed;
  static constexpr int count = 1 + squares + mixed;
  float of[count] = {};
  float c, outer_mean, source_mean;

  __device__ void add(const Columns<L>& at, const Weights<L, kKind>& w, float r2) {
#pragma unroll
    for (int i = 0; i < L::width; ++i) {
      of[0] += at.normed[i] * w.outer_or_1(i) * r2 * at.s[i];
      if constexpr (squares) of[1] += at.normed[i] * at.normed[i];
      if constexpr (mixed) of[count - 1] += at.normed[i] * w.outer_or_1(i) * at.bare[i];
    }
  }
  /// `normed`: some branch has a weight. If none has, `s` of a kept layout holds the sum of the branches without one.
  __device__ void finish(const Stats<L, kKind>& row, float inverse_d, float eps_inner, bool normed, bool has_outer) {
    const float mean = of[0] * inverse_d;
    c = normed ? mean : 0.0f;
    outer_mean = normed ? mean * eps_inner * row.r2 * row.r2 : mixed ? 0.0f : mean;
    if constexpr (mixed) outer_mean += of[count - 1] * inverse_d;
    source_mean = squares && has_outer ? outer_mean * (1.0f - of[squares] * inverse_d) : outer_mean;
  }
};

/// du, the gradient of u, and dx, that of x, at one vector of columns.
template <class L, Kind kKind>
__device__ void gradient(const Columns<L>& at, const Weights<L, kKind>& w, const RowSums<L, kKind>& sums,
                         const Stats<L, kKind>& row, bool has_outer, float (&du)[L::width], float (&dx)[L::width]) {
#pragma unroll
  for (int i = 0; i < L::width; ++i) {
    const float outer = w.outer_or_1(i);
    du[i] = row.r2 * fmaf(-(at.normed[i] * outer * row.r2), sums.c, at.s[i]);
    if constexpr (Columns<L>::mixed) du[i] = __fadd_rn(du[i], at.bare[i]);
    dx[i] = has_outer ? row.r1 * fmaf(du[i], outer, -(at.normed[i] * sums.outer_mean)) : du[i];
  }
}

}  // namespace mmfree::cuda::fused
