#include "core/cuda/column_sums.cuh"
#include "core/cuda/norm_quant.cuh"
#include "core/tensor.h"

namespace mmfree::cuda {
namespace {

using namespace fused;

struct Backward {
  struct Branch {
    const float* weight;
    const void* dout;
    Rounding rounding;
    void* u;
  };
  Source source;
  const float *outer, *r0, *r1, *r2;
  const void* incoming;
  void *da, *db;
  float* partial;  ///< [blocks, slots, d]: sums over a block's rows, or null
  float eps_inner;
  int64_t n, d;
  int count;
  bool emits;  ///< a branch has a u
  Branch branches[kMaxBranches];
};

/// What the backward pass reads of one row at the columns of a chunk.
template <class L, Kind kKind, class S, class A>
struct Inputs {
  Chunk<kKind, S, A, L::width> source;
  Loaded<A, L::width> dout[L::branches], incoming;

  __device__ void load(const Backward& p, int64_t n, int64_t k) {
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

struct Stats {
  float r0, r1, r2;
  __device__ void load(const Backward& p, int64_t n) {
    r0 = p.source.weight ? p.r0[n] : 1.0f;
    r1 = p.outer ? p.r1[n] : 1.0f;
    r2 = p.r2[n];
  }
};

/// Sums over the rows of a block at the columns of its threads: first of each branch's weight, then of `outer`, then of
/// the gate's weight.
template <class L, Kind kKind>
struct WeightSums {
  static constexpr int outer = L::branches, gate = outer + L::outer, slots = gate + (kKind == Kind::gate);
  float kept[L::kept ? slots : 1][L::held][L::width];
  float* partial;

  /// `each` walks over the thread's columns.
  template <class Each>
  __device__ WeightSums(const Backward& p, Each&& each)
      : partial(p.partial ? p.partial + int64_t(blockIdx.x) * slots * p.d : nullptr) {
    const float none[L::width] = {};
#pragma unroll
    for (int s = 0; s < slots; ++s)
      if constexpr (L::kept) {
#pragma unroll
        for (int v = 0; v < L::held; ++v)
#pragma unroll
          for (int i = 0; i < L::width; ++i) kept[s][v][i] = 0;
      } else if (partial) {
        each([&](int, int64_t k) { store(partial + s * p.d + k, none); });
      }
  }
  /// `plus(i, sum)` is the sum at column i with the row's term.
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

/// From the gradient dx of a row to those of its source; `mean` is that of x · dx, for the gate's norm. Leaves the
/// gate weight's terms in `dweight`.
template <Kind kKind, class S, class A, int W>
__device__ void store_source_gradient(const Backward& p, const Chunk<kKind, S, A, W>& source,
                                      const Loaded<A, W>& incoming, int64_t n, int64_t k, const float (&dx)[W],
                                      float r0, const float (&weight)[W], float mean, float (&dweight)[W]) {
  float da[W], db[W];
#pragma unroll
  for (int i = 0; i < W; ++i) {
    const float a = source.a[i];
    if constexpr (is_plain<kKind>) {
      da[i] = __fadd_rn(dx[i], incoming[i]);
    } else if constexpr (kKind == Kind::swiglu) {
      const float up = source.b[i], s = sigmoid<A>(a);
      da[i] = dx[i] * up * silu_slope(a, s);
      db[i] = dx[i] * silu(a, s);
    } else {
      const float b = source.b[i], s = sigmoid<A>(b), normed = a * r0;
      const float t = dx[i] * (p.source.weight ? silu(b, s) : s);
      dweight[i] = __fmul_rn(t, normed);
      da[i] = p.source.weight ? r0 * fmaf(t, weight[i], -(normed * mean)) : t;
      db[i] = dx[i] * normed * weight[i] * (p.source.weight ? silu_slope(b, s) : s * (1.0f - s));
    }
  }
  const int64_t place = n * (kKind == Kind::swiglu ? 2 * p.d : p.d) + k;
  if (p.da) store(static_cast<A*>(p.da) + place, da);
  if constexpr (kKind == Kind::swiglu)
    if (p.da) store(static_cast<A*>(p.da) + place + p.d, db);
  if constexpr (kKind == Kind::gate)
    if (p.db) store(static_cast<A*>(p.db) + place, db);
}

/// Rounds each branch's values as the forward kernel does: the same products in the same order, of x without r0.
/// `most` holds the magnitudes of x · outer · weight, `scale` is r0 r1 r2.
template <class L, Kind kKind, class S, class A>
__device__ void store_branches(const Backward& p, const Chunk<kKind, S, A, L::width>& source,
                               const Weights<L, kKind>& w, const uint32_t (&most)[L::branches], float scale,
                               int64_t place) {
#pragma unroll
  for (int b = 0; b < L::branches; ++b) {
    if (b >= p.count || !p.branches[b].u) continue;
    float value[L::width];
#pragma unroll
    for (int i = 0; i < L::width; ++i)
      value[i] = source.x(i, w.gate[i], p.source.weight) * w.outer[i] * w.branch[b][i] * scale;
    store_rounded(static_cast<A*>(p.branches[b].u) + place, value, p.branches[b].rounding,
                  activation_scale(__uint_as_float(most[b]) * scale));
  }
}

/// With û = u r2 and c = mean(û s), the only reduction: mean(û²) = 1 − eps_inner r2², so for x̂ and g of the outer norm
/// mean(x̂ g) = mean(u du) = c (1 − mean(û²)) = c eps_inner r2². Likewise mean(x dx), which the gate's norm needs, is
/// c eps_inner r2² without `outer`, and that times 1 − mean(x̂²) with it.
///
/// With kEmit branches may have a u. That must not change a bit of the gradients, so where the compiler could fuse a
/// product with a sum in one of the two kernels and not in the other, intrinsics say what happens.
template <class L, Kind kKind, class S, class A, bool kEmit>
__global__ __launch_bounds__(L::threads, L::resident) void backward(const Backward p) {
  constexpr int W = L::width, kSums = 1 + (kKind == Kind::gate && L::outer);
  __shared__ RowReduction<kSums, kEmit ? L::branches : 0> reduce;
  reduce.clear();
  const auto each = [&](auto&& body) { each_vector<L::vectors, W>(p.d, body); };
  const float share = 1.0f / float(p.d);
  using Sums = WeightSums<L, kKind>;
  Sums totals(p, each);
  Weights<L, kKind> w[L::held];
  Inputs<L, kKind, S, A> in[L::held];
  Stats next;
  if constexpr (L::kept) each([&](int v, int64_t k) { w[v].load(p, k), in[v].load(p, blockIdx.x, k); });
  next.load(p, blockIdx.x);

  int turn = 0;
  for (int64_t n = blockIdx.x; n < p.n; n += gridDim.x, turn ^= 1) {
    const Stats row = next;
    const float r01 = row.r0 * row.r1;
    float normed[L::held][W], s[L::held][W];  // x̂ (x where there is no outer norm) and s
    const auto normalise = [&](int v, const auto& source) {
#pragma unroll
      for (int i = 0; i < W; ++i) normed[v][i] = source.x(i, w[v].gate[i], p.source.weight) * r01;
    };
    const auto take = [&](int v, int64_t k) {
      if constexpr (!L::kept) w[v].load(p, k), in[v].load(p, n, k);
      normalise(v, in[v].source);
#pragma unroll
      for (int i = 0; i < W; ++i) {
        s[v][i] = 0;
#pragma unroll
        for (int b = 0; b < L::branches; ++b) s[v][i] += w[v].branch[b][i] * in[v].dout[b][i];
      }
    };
    const auto u_hat = [&](int v, int i) { return normed[v][i] * (L::outer ? w[v].outer[i] : 1.0f) * row.r2; };

    float sums[kSums] = {};
    uint32_t most[L::branches] = {};
    each([&](int v, int64_t k) {
      take(v, k);
#pragma unroll
      for (int i = 0; i < W; ++i) {
        sums[0] += u_hat(v, i) * s[v][i];
        if constexpr (kSums > 1) sums[1] += normed[v][i] * normed[v][i];
      }
#pragma unroll
      for (int b = 0; b < L::branches; ++b) {
        totals.add(b, v, k, p.d, [&](int i, float sum) { return fmaf(in[v].dout[b][i], u_hat(v, i), sum); });
        if constexpr (kEmit) {
#pragma unroll
          for (int i = 0; i < W; ++i)
            most[b] = max(most[b], magnitude(in[v].source.x(i, w[v].gate[i], p.source.weight) * w[v].outer[i] *
                                             w[v].branch[b][i]));
        }
      }
    });
    Chunk<kKind, S, A, W> source[L::held];
    Loaded<A, W> incoming[L::held];
    each([&](int v, int64_t) { source[v] = in[v].source, incoming[v] = in[v].incoming; });
    if (n + gridDim.x < p.n) {
      if constexpr (L::kept) each([&](int v, int64_t k) { in[v].load(p, n + gridDim.x, k); });
      next.load(p, n + gridDim.x);
    }
    reduce(turn, sums, most);

    const float c = sums[0] * share, rest = c * p.eps_inner * row.r2 * row.r2;
    const bool outer = L::outer && p.outer;
    const float mean = kSums > 1 && outer ? rest * (1.0f - sums[kSums - 1] * share) : rest;
    each([&](int v, int64_t k) {
      if constexpr (!L::kept) {
        take(v, k), source[v] = in[v].source, incoming[v] = in[v].incoming;
      } else if constexpr (kEmit) {
        source[v].a.forget(), source[v].b.forget();
        normalise(v, source[v]);
      }
      float du[W], dx[W], dweight[W];
#pragma unroll
      for (int i = 0; i < W; ++i) {
        dx[i] = du[i] = row.r2 * fmaf(-u_hat(v, i), c, s[v][i]);
        if (outer) dx[i] = row.r1 * fmaf(du[i], w[v].outer[i], -(normed[v][i] * rest));
      }
      if constexpr (L::outer)
        totals.add(Sums::outer, v, k, p.d, [&](int i, float sum) { return fmaf(du[i], normed[v][i], sum); });
      store_source_gradient(p, source[v], incoming[v], n, k, dx, row.r0, w[v].gate, mean, dweight);
      if constexpr (kKind == Kind::gate)
        totals.add(Sums::gate, v, k, p.d, [&](int i, float sum) { return sum + dweight[i]; });
      if constexpr (kEmit) store_branches(p, source[v], w[v], most, r01 * row.r2, n * p.d + k);
    });
  }
  totals.finish(p.d, each);
}

/// Layouts of calls whose rows stay in registers. Gates and swiglus do with one branch and without `outer`, the only
/// ones on hot paths.
template <Kind kKind, int kBranches>
using BackwardLayout =
    std::conditional_t<kKind == Kind::swiglu, Layout<1, 8, 1, false, 704>,
                       std::conditional_t<kKind == Kind::gate, Layout<1, 8, 1, false, 512>,
                                          std::conditional_t<kBranches == 1, Layout<1, 8, 1, true, 320, 2>,
                                                             Layout<1, 8, kBranches, true, 512>>>>;
struct RunBackward {
  const Backward& p;
  const NormQuantBackwardArgs& args;
  bool aligned;

  template <Kind kKind, class S, class A>
  void operator()() const {
    choose_layout<kKind, BackwardLayout>(p.d, size_t(p.count), p.outer, aligned, [&]<class L>() {
      if (L::kept && !p.emits) return launch<L, kKind, S, A, !L::kept>();
      launch<L, kKind, S, A, true>();
    });
  }
  template <class L, Kind kKind, class S, class A, bool kEmit>
  void launch() const {
    using Sums = WeightSums<L, kKind>;
    const int threads = threads_for(ceil_div(p.d, L::width * L::held), L::threads);
    const int64_t blocks = persistent_blocks<backward<L, kKind, S, A, kEmit>>(threads, p.n);
    ColumnSums columns{nullptr, blocks, p.d, Sums::slots, {}};
    bool wanted = args.douter || args.dweight;
    for (size_t b = 0; b < args.branches.size(); ++b) {
      columns.of[b] = {static_cast<float*>(args.branches[b].dweight), float(args.branches[b].beta)};
      wanted |= args.branches[b].dweight != nullptr;
    }
    if constexpr (L::outer)
      if (p.outer) columns.of[Sums::outer] = {static_cast<float*>(args.douter), float(args.beta_outer)};
    if constexpr (kKind == Kind::gate)
      if (p.source.weight) columns.of[Sums::gate] = {static_cast<float*>(args.dweight), float(args.beta_weight)};
    Tensor partial;
    if (wanted) partial = Tensor({blocks, int64_t(Sums::slots), p.d}, DType::f32, Device::cuda);
    Backward call = p;
    columns.partial = call.partial = reinterpret_cast<float*>(partial.raw_mut());
    if (blocks) {
      backward<L, kKind, S, A, kEmit><<<unsigned(blocks), threads, 0, stream()>>>(call);
      check_launch("norm_quant_backward");
    }
    if (wanted) finish_column_sums(columns, "norm_quant_backward");
  }
};

}  // namespace

void norm_quant_backward(const NormQuantBackwardArgs& a) {
  check_branches(a.branches.size(), "norm_quant_backward");
  if (a.d == 0) return;
  RowSourceArgs source = a.source;
  if (source.kind != Kind::gate) source.weight = nullptr;
  Backward p{source_of(source),
             static_cast<const float*>(a.outer),
             static_cast<const float*>(a.r0),
             static_cast<const float*>(a.r1),
             static_cast<const float*>(a.r2),
             a.incoming,
             a.da,
             a.db,
             nullptr,
             float(a.eps_inner),
             a.n,
             a.d,
             int(a.branches.size()),
             false,
             {}};
  bool aligned = all_aligned({source.a, source.b, source.weight, a.outer, a.incoming, a.da, a.db});
  for (size_t b = 0; b < a.branches.size(); ++b) {
    const NormQuantBackwardArgs::Branch& from = a.branches[b];
    p.branches[b] = {static_cast<const float*>(from.weight), from.dout, from.rounding, from.u};
    p.emits |= from.u != nullptr;
    aligned = aligned && all_aligned({from.weight, from.dout, from.u});
  }
  dispatch_source(source, a.dtype, "norm_quant_backward", RunBackward{p, a, aligned});
}

}  // namespace mmfree::cuda
