#include "core/cuda/norm_quant.cuh"

namespace mmfree::cuda {
namespace {

using namespace fused;

struct Forward {
  struct Branch {
    const float* weight;
    void* out;
    float* step;
    Rounding rounding;
  };
  Source source;
  const float* outer;
  void* x;
  float *r0, *r1, *r2;
  float eps_outer, eps_inner;
  int64_t n, d;
  int count;
  Branch branches[kMaxBranches];
};

/// Rounds values of one branch and stores them at `place`.
template <class A, int W>
__device__ void store_branch(const Forward::Branch& b, int64_t place, const float (&v)[W], ActivationScale<float> q) {
  if (b.step) {
    Pack<int8_t, W> codes;
#pragma unroll
    for (int i = 0; i < W; ++i) codes.at[i] = quantise(v[i], q.inverse);
    *reinterpret_cast<Pack<int8_t, W>*>(static_cast<int8_t*>(b.out) + place) = codes;
    return;
  }
  store_rounded(static_cast<A*>(b.out) + place, v, b.rounding, q);
}

template <class L, Kind kKind, class S, class A>
__global__ __launch_bounds__(L::threads, L::resident) void forward(const Forward p) {
  constexpr bool kGate = kKind == Kind::gate;
  constexpr int W = L::width, kSums = 1 + L::outer + kGate;
  __shared__ RowReduction<kSums, L::branches> reduce;
  reduce.clear();
  const auto each = [&](auto&& body) { each_vector<L::vectors, W>(p.d, body); };
  const bool normed = kGate && p.source.weight;
  const float share = 1.0f / float(p.d);
  Weights<L, kKind> w[L::held];
  Chunk<kKind, S, A, W> chunk[L::held];
  if constexpr (L::kept) each([&](int v, int64_t k) { w[v].load(p, k), chunk[v].load(p.source, blockIdx.x, k, p.d); });

  int turn = 0;
  for (int64_t n = blockIdx.x; n < p.n; n += gridDim.x, turn ^= 1) {
    float x[L::held][W];  // from here on times outer, and for a gate without r0
    float sums[kSums] = {};
    uint32_t most[L::branches] = {};
    const auto take = [&](int v, int64_t k) {
      if constexpr (!L::kept) w[v].load(p, k), chunk[v].load(p.source, n, k, p.d);
#pragma unroll
      for (int i = 0; i < W; ++i) x[v][i] = chunk[v].x(i, w[v].gate[i], normed);
    };
    each([&](int v, int64_t k) {
      take(v, k);
      if constexpr (kKind == Kind::sum)
        if (p.x) store(static_cast<S*>(p.x) + n * p.d + k, x[v]);
#pragma unroll
      for (int i = 0; i < W; ++i) {
        sums[0] += x[v][i] * x[v][i];
        if constexpr (kGate) sums[kSums - 1] += chunk[v].a[i] * chunk[v].a[i];
        if constexpr (L::outer) {
          x[v][i] *= w[v].outer[i];
          sums[1] += x[v][i] * x[v][i];
        }
#pragma unroll
        for (int b = 0; b < L::branches; ++b) most[b] = max(most[b], magnitude(x[v][i] * w[v].branch[b][i]));
      }
    });
    if constexpr (L::kept)
      if (n + gridDim.x < p.n) each([&](int v, int64_t k) { chunk[v].load(p.source, n + gridDim.x, k, p.d); });
    reduce(turn, sums, most);

    const float r0 = normed ? rms_reciprocal(sums[kSums - 1] * share, p.source.eps) : 1.0f;
    const float r1 = L::outer && p.outer ? rms_reciprocal(r0 * r0 * sums[0] * share, p.eps_outer) : 1.0f;
    const float r01 = r0 * r1, r2 = rms_reciprocal(r01 * r01 * sums[L::outer] * share, p.eps_inner);
    const float scale = r01 * r2;
    ActivationScale<float> q[L::branches];
#pragma unroll
    for (int b = 0; b < L::branches; ++b) q[b] = activation_scale(__uint_as_float(most[b]) * scale);
    each([&](int v, int64_t k) {
      if constexpr (!L::kept) {
        take(v, k);
#pragma unroll
        for (int i = 0; i < W; ++i) x[v][i] *= w[v].outer[i];
      }
#pragma unroll
      for (int b = 0; b < L::branches; ++b) {
        if (b >= p.count) break;
        float value[W];
#pragma unroll
        for (int i = 0; i < W; ++i) value[i] = x[v][i] * w[v].branch[b][i] * scale;
        store_branch<A>(p.branches[b], n * p.d + k, value, q[b]);
      }
    });
    if (threadIdx.x == 0) {
      if (normed) p.r0[n] = r0;
      if (L::outer && p.outer) p.r1[n] = r1;
      p.r2[n] = r2;
#pragma unroll
      for (int b = 0; b < L::branches; ++b)
        if (b < p.count && p.branches[b].step) p.branches[b].step[n] = q[b].step;
    }
  }
}

/// Layouts of calls whose rows stay in registers. Gates and swiglus do with one branch and without `outer`, the only
/// ones on hot paths. Few bytes per column call for more columns per thread, which share the cost of the
/// reduction.
template <Kind kKind, int kBranches>
using ForwardLayout =
    std::conditional_t<kKind == Kind::swiglu, Layout<2, 8, 1, false, 384, 2>,
                       std::conditional_t<kKind == Kind::gate, Layout<2, 8, 1, false, 192, 3>,
                                          std::conditional_t<kBranches == 1, Layout<1, 8, 1, true, 384, 2>,
                                                             Layout<1, 8, kBranches, true, 320, 2>>>>;
struct RunForward {
  const Forward& p;
  bool aligned;

  template <Kind kKind, class S, class A>
  void operator()() const {
    choose_layout<kKind, ForwardLayout>(p.d, size_t(p.count), p.outer, aligned, [&]<class L>() {
      const int threads = threads_for(ceil_div(p.d, L::width * L::held), L::threads);
      const auto blocks = unsigned(persistent_blocks<forward<L, kKind, S, A>>(threads, p.n));
      forward<L, kKind, S, A><<<blocks, threads, 0, stream()>>>(p);
    });
    check_launch("norm_quant");
  }
};

}  // namespace

void norm_quant(const NormQuantArgs& a) {
  check_branches(a.branches.size(), "norm_quant");
  if (a.n == 0 || a.d == 0) return;
  Forward p{source_of(a.source),
            static_cast<const float*>(a.outer),
            a.x,
            static_cast<float*>(a.r0),
            static_cast<float*>(a.r1),
            static_cast<float*>(a.r2),
            float(a.eps_outer),
            float(a.eps_inner),
            a.n,
            a.d,
            int(a.branches.size()),
            {}};
  bool aligned = all_aligned({a.source.a, a.source.b, a.source.weight, a.outer, a.x});
  for (size_t b = 0; b < a.branches.size(); ++b) {
    const NormQuantArgs::Branch& from = a.branches[b];
    p.branches[b] = {static_cast<const float*>(from.weight), from.out, static_cast<float*>(from.step), from.rounding};
    aligned = aligned && all_aligned({from.weight, from.out});
  }
  dispatch_source(a.source, a.dtype, "norm_quant", RunForward{p, aligned});
}

}  // namespace mmfree::cuda
