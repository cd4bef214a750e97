#include "core/cuda/column_sums.cuh"
#include "core/cuda/norm_quant.cuh"
#include "core/tensor.h"

namespace mmfree::cuda {
namespace {

using namespace fused;

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

/// Computes and stores the gradients of the source from the gradient dx of a row. `mean` is mean(x · dx), for the
/// gate's norm. `dweight`, out: the row's terms of the gate weight's gradient.
template <Kind kKind, class S, class A, int W>
__device__ void store_source_gradient(const NormQuantBackwardArgs& p, const Chunk<kKind, S, A, W>& source,
                                      const Loaded<A, W>& incoming, int64_t n, int64_t k, const float (&dx)[W],
                                      float r0, const float (&weight)[W], float mean, float (&dweight)[W]) {
  const int64_t place = n * (kKind == Kind::glu ? p.source.stride : p.d) + k;
  const auto store_at = [](void* to, int64_t at, const float(&values)[W]) {
    if (to) store(static_cast<A*>(to) + at, values);
  };
  float da[W], db[W];
  if constexpr (is_plain<kKind>) {
#pragma unroll
    for (int i = 0; i < W; ++i) da[i] = __fadd_rn(dx[i], incoming[i]);
    store_at(p.da, place, da);
  } else if constexpr (kKind == Kind::gate) {
#pragma unroll
    for (int i = 0; i < W; ++i) {
      const float a = source.a[i], b = source.b[i], s = sigmoid<A>(b), normed = a * r0;
      const float t = dx[i] * (p.source.weight ? silu(b, s) : s);
      dweight[i] = __fmul_rn(t, normed);
      da[i] = p.source.weight ? r0 * fmaf(t, weight[i], -(normed * mean)) : t;
      db[i] = dx[i] * normed * weight[i] * (p.source.weight ? silu_slope(b, s) : s * (1.0f - s));
    }
    store_at(p.da, place, da);
    store_at(p.db, place, db);
  } else {
    static_assert(kKind == Kind::glu || kKind == Kind::activation);
    with_activation(p.source.f, [&]<Activation f>() {
#pragma unroll
      for (int i = 0; i < W; ++i) {
        const Activated<float> at = activated<f, Maths<A>>(source.a[i]);
        da[i] = dx[i] * (kKind == Kind::glu ? source.b[i] : 1.0f) * at.slope;
        db[i] = dx[i] * at.value;
      }
      store_at(p.da, place, da);
      if constexpr (kKind == Kind::glu) store_at(p.db, place, db);
    });
  }
}

/// Rounds each branch's values with the bits of the forward kernel: the same products in the same order, x without r0.
/// `absmax` holds the magnitudes of x · outer · weight.
template <class A, class L, Kind kKind>
__device__ void store_branches(const NormQuantBackwardArgs& p, const float (&x)[L::width], const Weights<L, kKind>& w,
                               const uint32_t (&absmax)[L::branches], const Stats<L, kKind>& row, int64_t place) {
  const float r01 = row.r0 * row.r1;
#pragma unroll
  for (int b = 0; b < L::branches; ++b) {
    if (b >= p.count || !p.branches[b].out) continue;
    const float scale = L::kept || p.branches[b].weight ? r01 * row.r2 : r01;
    float value[L::width];
#pragma unroll
    for (int i = 0; i < L::width; ++i) value[i] = x[i] * w.outer[i] * w.branch[b][i] * scale;
    store_values<A>(p.branches[b], place, value, activation_scale(__uint_as_float(absmax[b]) * scale));
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

  /// Computes x without r0 in `x`, and x̂ in `normed`.
  template <class Source>
  __device__ void normalise(const NormQuantBackwardArgs& p, const Source& source, const float (&gate)[L::width],
                            float r01, float (&x)[L::width]) {
    source.x(p.source, gate, x);
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

/// The largest |x · outer · weight| of each branch, x without r0, as the forward kernel finds it.
template <class L, Kind kKind>
__device__ void find_absmax(const NormQuantBackwardArgs& p, const float (&x)[L::width], const Weights<L, kKind>& w,
                            uint32_t (&absmax)[L::branches]) {
#pragma unroll
  for (int b = 0; b < L::branches; ++b) {
    if (!L::kept && b >= p.count) break;
#pragma unroll
    for (int i = 0; i < L::width; ++i) absmax[b] = max(absmax[b], magnitude(x[i] * w.outer[i] * w.branch[b][i]));
  }
}

/// The backward pass. A block processes its rows one after the other, with two loops over a row's columns: the first
/// sums, the second stores. The only reduction over the block is between them: RowSums, and with kEmit the absmax of
/// each branch. Column sums over rows are in registers (kept layouts) or in `partials`.
///
/// With kEmit a branch may have an `out`. It is stored while x is in registers, or at the end if x is cheap to compute
/// again, to save registers. kEmit must not change a bit of the gradients: intrinsics fix the rounding wherever the
/// compiler could make an fma in one of the two kernels and not in the other.
template <class L, Kind kKind, class S, class A, bool kEmit>
__global__ __launch_bounds__(L::threads, L::resident) void backward(const NormQuantBackwardArgs p, float* partials,
                                                                    float eps_inner) {
  constexpr int W = L::width;
  using Sums = WeightSums<L, kKind>;
  __shared__ RowReduction<RowSums<L, kKind>::count, kEmit ? L::branches : 0> reduce;
  reduce.clear();
  begin_kernel();
  const auto each = [&](auto&& body) { each_vector<L::vectors, W>(p.d, body); };
  const bool outer = L::outer && p.outer;
  Sums totals(partials, p.d, each);
  Weights<L, kKind> w[L::held];
  Inputs<L, kKind, S, A> in[L::held];
  if constexpr (L::kept) each([&](int v, int64_t k) { w[v].load(p, k), in[v].load(p, blockIdx.x, k); });
  auto next = Stats<L, kKind>::of(p, blockIdx.x);
  int turn = 0;
  for (int64_t n = blockIdx.x; n < p.n; n += gridDim.x, turn ^= 1) {
    const auto row = next;
    Columns<L> at[L::held];
    RowSums<L, kKind> sums;
    uint32_t absmax[L::branches] = {};
    const auto take = [&](int v, int64_t k, float(&x)[W]) {
      if constexpr (!L::kept) w[v].load(p, k), in[v].load(p, n, k);
      at[v].normalise(p, in[v].source, w[v].gate, row.r0 * row.r1, x);
      at[v].sum_branches(p, in[v], w[v]);
    };
    each([&](int v, int64_t k) {
      float x[W];
      take(v, k, x);
      sums.add(at[v], w[v], row.r2);
      totals.add_branches(p, v, k, in[v], [&](int i) { return at[v].normed[i] * w[v].outer_or_1(i) * row.r2; });
      if constexpr (kEmit) find_absmax(p, x, w[v], absmax);
    });
    Inputs<L, kKind, S, A> now[L::held];
    each([&](int v, int64_t) { now[v] = in[v]; });
    if (n + gridDim.x < p.n) {
      if constexpr (L::kept) each([&](int v, int64_t k) { in[v].load(p, n + gridDim.x, k); });
      next = Stats<L, kKind>::of(p, n + gridDim.x);
    }
    reduce(turn, sums.of, absmax);
    sums.finish(row, 1.0f / float(p.d), eps_inner, p.r2, outer);
    each([&](int v, int64_t k) {
      float x[W], du[W], dx[W], dweight[W];
      if constexpr (!L::kept) {
        take(v, k, x), now[v] = in[v];
      } else if constexpr (kEmit) {
        now[v].source.a.forget(), now[v].source.b.forget();
        at[v].normalise(p, now[v].source, w[v].gate, row.r0 * row.r1, x);
      }
      if constexpr (kEmit && !is_plain<kKind>) store_branches<A>(p, x, w[v], absmax, row, n * p.d + k);
      gradient(at[v], w[v], sums, row, outer, du, dx);
      if constexpr (L::outer)
        totals.add(Sums::outer, v, k, p.d, [&](int i, float sum) { return fmaf(du[i], at[v].normed[i], sum); });
      store_source_gradient(p, now[v].source, now[v].incoming, n, k, dx, row.r0, w[v].gate, sums.source_mean, dweight);
      if constexpr (kKind == Kind::gate)
        totals.add(Sums::gate, v, k, p.d, [&](int i, float sum) { return sum + dweight[i]; });
      if constexpr (kEmit && is_plain<kKind>)
        now[v].source.x(p.source, w[v].gate, x), store_branches<A>(p, x, w[v], absmax, row, n * p.d + k);
    });
  }
  totals.finish(p.d, each);
}

/// Layouts of calls whose rows stay in registers. For gate, glu and activation they have one branch and no `outer`, the
/// only such calls in a model.
template <Kind kKind, int kBranches>
using BackwardLayout =
    std::conditional_t<kKind == Kind::glu || kKind == Kind::activation, Layout<1, 8, 1, false, 704>,
                       std::conditional_t<kKind == Kind::gate, Layout<1, 8, 1, false, 512>,
                                          std::conditional_t<kBranches == 1, Layout<1, 8, 1, true, 320, 2>,
                                                             Layout<1, 8, kBranches, true, 512>>>>;
struct RunBackward {
  const NormQuantBackwardArgs& p;
  bool aligned, emits;

  template <Kind kKind, class S, class A>
  void operator()() const {
    choose_layout<kKind, BackwardLayout>(p, aligned, [&]<class L>() {
      if (L::kept && !emits) return launch<L, kKind, S, A, !L::kept>();
      launch<L, kKind, S, A, true>();
    });
  }
  template <class L, Kind kKind, class S, class A, bool kEmit>
  void launch() const {
    using Sums = WeightSums<L, kKind>;
    const int threads = threads_for(ceil_div(p.d, L::width * L::held), L::threads);
    const int64_t blocks = persistent_blocks<backward<L, kKind, S, A, kEmit>>(threads, p.n);
    ColumnSums columns{nullptr, blocks, p.d, Sums::slots, {}};
    for (int b = 0; b < p.count; ++b)
      columns.of[b] = {static_cast<float*>(p.branches[b].dweight), float(p.branches[b].beta)};
    if constexpr (L::outer) columns.of[Sums::outer] = {static_cast<float*>(p.douter), float(p.beta_outer)};
    if constexpr (kKind == Kind::gate) columns.of[Sums::gate] = {static_cast<float*>(p.dweight), float(p.beta_weight)};
    Tensor partial;
    bool wanted = false;
    for (int slot = 0; slot < Sums::slots; ++slot) wanted |= columns.of[slot].out != nullptr;
    if (wanted) partial = Tensor({blocks, int64_t(Sums::slots), p.d}, DType::f32, Device::cuda);
    auto* partials = reinterpret_cast<float*>(partial.raw_mut());
    columns.partial = partials;
    if (blocks) {
      launch_kernel(backward<L, kKind, S, A, kEmit>, {unsigned(blocks), unsigned(threads)}, p, partials,
                    float(p.eps_inner));
      check_launch("norm_quant_backward");
    }
    finish_column_sums(columns, "norm_quant_backward");
  }
};

}  // namespace

void norm_quant_backward(const NormQuantBackwardArgs& p) {
  if (p.d == 0) return;
  bool emits = false;
  for (int b = 0; b < p.count; ++b) emits |= p.branches[b].out != nullptr;
  const bool aligned = rows_aligned(p) && all_aligned({p.incoming, p.da, p.db});
  dispatch_source(p, "norm_quant_backward", RunBackward{p, aligned, emits});
}

}  // namespace mmfree::cuda
