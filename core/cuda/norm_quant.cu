#include "core/cuda/norm_quant.cuh"

namespace mmfree::cuda {
namespace {

using namespace fused;

struct Epsilons {
  float gate, outer, inner;
};

/// The reductions of one row, and the scales that follow from them: Σ x², Σ (x · outer)², Σ a² of a gate, and the
/// largest |x · outer · weight| of each branch. Here x is without the factor r0.
template <class L, bool kGate>
struct RowScales {
  static constexpr int kOuter = L::outer, kA = L::outer + kGate, kSums = 1 + kA;  // indices in `sums`
  float sums[kSums] = {};
  uint32_t absmax[L::branches] = {};
  float r0, r1, r2, r01;
  ActivationScale<float> q[L::branches];

  /// Adds column i of `w` to the reductions; x becomes x · outer.
  template <class W>
  __device__ void add(float& x, float a, const W& w, int i) {
    sums[0] += x * x;
    if constexpr (kGate) sums[kA] += a * a;
    if constexpr (L::outer) {
      x *= w.outer[i];
      sums[kOuter] += x * x;
    }
#pragma unroll
    for (int b = 0; b < L::branches; ++b) absmax[b] = max(absmax[b], magnitude(x * w.branch[b][i]));
  }
  __device__ void finish(const NormQuantArgs& p, const Epsilons& eps, float inverse_d) {
    r0 = kGate && p.r0 ? rms_reciprocal(sums[kA] * inverse_d, eps.gate) : 1.0f;
    r1 = L::outer && p.r1 ? rms_reciprocal(r0 * r0 * sums[0] * inverse_d, eps.outer) : 1.0f;
    r01 = r0 * r1;
    r2 = p.r2 ? rms_reciprocal(r01 * r01 * sums[kOuter] * inverse_d, eps.inner) : 1.0f;
#pragma unroll
    for (int b = 0; b < L::branches; ++b) q[b] = activation_scale(__uint_as_float(absmax[b]) * scale(p.branches[b]));
  }
  /// Factor of x · outer · weight. r2 belongs to branches with a weight only. A kept layout needs no test for that: it
  /// never has mixed branches (see are_mixed), and r2 is 1 if no branch has a weight.
  __device__ float scale(const NormBranchArgs& b) const { return L::kept || b.weight ? r01 * r2 : r01; }
  __device__ void store(const NormQuantArgs& p, int64_t n) const {
    if (kGate && p.r0) static_cast<float*>(p.r0)[n] = r0;
    if (L::outer && p.r1) static_cast<float*>(p.r1)[n] = r1;
    if (p.r2) static_cast<float*>(p.r2)[n] = r2;
#pragma unroll
    for (int b = 0; b < L::branches; ++b)
      if (b < p.count && p.branches[b].step) static_cast<float*>(p.branches[b].step)[n] = q[b].step;
  }
};

/// One reduction per row, of the sums and maxima of RowScales.
template <class L, Kind kKind, class S, class A>
__global__ __launch_bounds__(L::threads, L::resident) void forward(const NormQuantArgs p, const Epsilons eps) {
  constexpr int W = L::width;
  using Scales = RowScales<L, kKind == Kind::gate>;
  __shared__ RowReduction<Scales::kSums, L::branches> reduce;
  reduce.clear();
  begin_kernel();
  const auto each = [&](auto&& body) { each_vector<L::vectors, W>(p.d, body); };
  const float inverse_d = 1.0f / float(p.d);
  Weights<L, kKind> w[L::held];
  Chunk<kKind, S, A, W> chunk[L::held];
  if constexpr (L::kept) each([&](int v, int64_t k) { w[v].load(p, k), chunk[v].load(p.source, blockIdx.x, k, p.d); });

  int turn = 0;
  for (int64_t n = blockIdx.x; n < p.n; n += gridDim.x, turn ^= 1) {
    float x[L::held][W];  // without r0; after `add` times outer
    Scales row;
    const auto take = [&](int v, int64_t k) {
      if constexpr (!L::kept) w[v].load(p, k), chunk[v].load(p.source, n, k, p.d);
      chunk[v].x(p.source, chunk[v].function(p.source), w[v].gate, x[v]);
    };
    each([&](int v, int64_t k) {
      take(v, k);
      if constexpr (kKind == Kind::sum)
        if (p.x) store(static_cast<S*>(p.x) + n * p.d + k, x[v]);
#pragma unroll
      for (int i = 0; i < W; ++i) row.add(x[v][i], chunk[v].a[i], w[v], i);
    });
    if constexpr (L::kept)
      if (n + gridDim.x < p.n) each([&](int v, int64_t k) { chunk[v].load(p.source, n + gridDim.x, k, p.d); });
    reduce(turn, row.sums, row.absmax);
    row.finish(p, eps, inverse_d);
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
        for (int i = 0; i < W; ++i) value[i] = x[v][i] * w[v].branch[b][i] * row.scale(p.branches[b]);
        store_branch<A>(p.branches[b], n * p.d + k, value, row.q[b]);
      }
    });
    if (threadIdx.x == 0) row.store(p, n);
  }
}

/// Layouts of calls whose rows stay in registers. For gate, glu and activation they have one branch and no `outer`, the
/// only such calls in a model. Those kinds have few bytes per column, so a thread takes more columns, which share the
/// cost of the reduction.
template <Kind kKind, int kBranches>
using ForwardLayout =
    std::conditional_t<kKind == Kind::glu || kKind == Kind::activation, Layout<2, 8, 1, false, 384, 2>,
                       std::conditional_t<kKind == Kind::gate, Layout<2, 8, 1, false, 192, 3>,
                                          std::conditional_t<kBranches == 1, Layout<1, 8, 1, true, 384, 2>,
                                                             Layout<1, 8, kBranches, true, 320, 2>>>>;
struct RunForward {
  const NormQuantArgs& p;
  bool aligned;

  template <Kind kKind, class S, class A>
  void operator()() const {
    const Epsilons eps{float(p.source.eps), float(p.eps_outer), float(p.eps_inner)};
    const auto no_bytes = [&]<class L>() { return size_t(0); };
    choose_layout<kKind, ForwardLayout>(p, aligned, no_bytes, [&]<class L>() {
      const int threads = row_threads<L>(p.d);
      const auto blocks = unsigned(persistent_blocks<forward<L, kKind, S, A>>(threads, p.n));
      launch_kernel(forward<L, kKind, S, A>, {blocks, unsigned(threads)}, p, eps);
    });
    check_launch("norm_quant");
  }
};

}  // namespace

void norm_quant(const NormQuantArgs& p) {
  if (p.n == 0 || p.d == 0) return;
  dispatch_source(p, "norm_quant", RunForward{p, rows_aligned(p) && is_aligned(p.x)});
}

}  // namespace mmfree::cuda
