#include "core/cuda/bytes.cuh"
#include "core/cuda/column_sums.cuh"
#include "core/cuda/norm_quant_backward.cuh"
#include "core/ops/ternary_int8.h"
#include "core/tensor.h"

namespace mmfree::cuda {
namespace {

using namespace fused;

/// The gradient of the source's a (of a glu both halves), in bf16, of the row before. It waits in registers for the
/// absmax of its row, which comes with the reduction of the next row, and is then stored in 8 bits.
template <class L, Kind kKind>
struct LateRow {
  static constexpr int halves = kKind == Kind::glu ? 2 : 1;
  Loaded<Bf16, L::width> values[halves][L::held];
  uint32_t most = 0;  ///< the largest magnitudes at even and at odd columns, in bf16

  /// Takes a vector of a half; stores it in `to` at `place` too, unless that is null.
  __device__ void take(int half, int v, const float (&x)[L::width], Bf16* to, int64_t place) {
    Pack<Bf16, L::width> pack;
#pragma unroll
    for (int i = 0; i < L::width; ++i) pack.at[i] = from_float<Bf16>(x[i]);
    Loaded<Bf16, L::width>& mine = values[half][v];
    mine.words = reinterpret_cast<const typename Loaded<Bf16, L::width>::Words&>(pack);
    if (to) store_word(reinterpret_cast<uint4*>(to + place), reinterpret_cast<const uint4&>(pack));
#pragma unroll
    for (const uint32_t word : mine.words.at) most = __vmaxu2(most, word & 0x7fff7fffu);
  }
  /// The magnitude of the largest value.
  __device__ uint32_t absmax() const { return max(most & 0xffff0000u, most << 16); }
  template <class Each>
  __device__ void store(const NormQuantBackwardArgs& p, int64_t n, uint32_t absmax, Each&& each) {
    const float inverse = gradient_scale(__uint_as_float(absmax)).inverse;
    if (threadIdx.x == 0) static_cast<float*>(p.row_steps)[n] = gradient_scale(__uint_as_float(absmax)).step;
    each([&](int v, int64_t k) {
#pragma unroll
      for (int half = 0; half < halves; ++half) {
        Pack<uint32_t, L::width / 4> codes;
        const auto code = [&](int i) { return round_half_away(rounded_product(values[half][v][i], inverse)); };
#pragma unroll
        for (int i = 0; i < L::width; i += 4)
          codes.at[i / 4] = low_bytes(code(i), code(i + 1), code(i + 2), code(i + 3));
        *reinterpret_cast<Pack<uint32_t, L::width / 4>*>(p.rows + (n * halves + half) * p.d + k) = codes;
      }
    });
    most = 0;
  }
  /// Stores the block's last row, which no other one follows.
  template <class Reduce, class Each>
  __device__ void store_last(const NormQuantBackwardArgs& p, int64_t n, Reduce& reduce, int turn, Each&& each) {
    float none[RowSums<L, kKind>::count] = {};
    uint32_t last[L::branches + 1] = {};
    last[L::branches] = absmax();
    reduce(turn, none, last);
    store(p, n, last[L::branches], each);
  }
};

/// The largest |x · outer · weight| of each branch, x without r0, as the forward kernel finds it.
template <class L, Kind kKind>
__device__ void find_absmax(const NormQuantBackwardArgs& p, const float (&x)[L::width], const Weights<L, kKind>& w,
                            uint32_t* absmax) {
#pragma unroll
  for (int b = 0; b < L::branches; ++b) {
    if (!L::kept && b >= p.count) break;
#pragma unroll
    for (int i = 0; i < L::width; ++i) absmax[b] = max(absmax[b], magnitude(x[i] * w.outer[i] * w.branch[b][i]));
  }
}

/// What a kernel writes besides the gradients.
enum class Extra {
  none,
  branches,  ///< the rounded values of branches that have an `out`
  rows,      ///< these, and the gradient of the source in 8 bits by rows
};

/// Where source_gradient puts the gradients of row n at columns from k on.
template <Extra kExtra, class A, class L, Kind kKind>
struct SourceOut {
  const NormQuantBackwardArgs& p;
  LateRow<L, kKind>& late;
  int v;
  int64_t place;

  __device__ SourceOut(const NormQuantBackwardArgs& p, LateRow<L, kKind>& late, int v, int64_t n, int64_t k)
      : p(p), late(late), v(v), place(n * (kKind == Kind::glu ? p.source.stride : p.d) + k) {}
  template <int kPart>
  __device__ void operator()(const float (&gradient)[L::width]) const {
    A* const to = static_cast<A*>(kPart ? p.db : p.da);
    if constexpr (kExtra == Extra::rows && kPart < LateRow<L, kKind>::halves)
      late.take(kPart, v, gradient, to, place);
    else if (to)
      store(to + place, gradient);
  }
};

/// The source's function at a vector whose inputs are in registers, and, if branches are written, x without r0 in `x`.
/// In a kept layout there are registers for `known`, what it was before, if it follows from σ.
template <bool kEmit, bool kSilu, class L, Kind kKind, class Source, class F>
__device__ F function_again(const NormQuantBackwardArgs& p, Source& source, Columns<L>& at, const Weights<L, kKind>& w,
                            const Stats<L, kKind>& row, const F& known, float (&x)[L::width]) {
  if constexpr (kEmit) source.a.forget(), source.b.forget();
  const F f = F::by_sigmoid ? known : source.template function<kSilu>(p.source);
  if constexpr (kEmit) at.normalise(p, source, f, w.gate, row.r0 * row.r1, x);
  return f;
}

/// What is known of row n after the reduction.
template <class L, Kind kKind>
struct KnownRow {
  int64_t n;
  const Stats<L, kKind>& stats;
  const RowSums<L, kKind>& sums;
  const uint32_t* absmax;
  bool outer;
};

/// Stores the gradients of a row at the columns from k on, and adds its terms to `totals`. `x` is x without r0, if it
/// is written at once.
template <class A, Extra kExtra, bool kSilu, class L, Kind kKind, class S>
__device__ void finish_vector(const NormQuantBackwardArgs& p, const KnownRow<L, kKind>& row, int v, int64_t k,
                              const Function<kKind, kSilu, L::width>& f, Inputs<L, kKind, S, A>& in,
                              const Columns<L>& at, const Weights<L, kKind>& w, float (&x)[L::width],
                              WeightSums<L, kKind>& totals, LateRow<L, kKind>& late) {
  constexpr bool kEmit = kExtra != Extra::none;
  using Sums = WeightSums<L, kKind>;
  float du[L::width], dx[L::width], dweight[L::width];
  if constexpr (kEmit && !is_plain<kKind>) store_branches<A>(p, x, w, row.absmax, row.stats, row.n, k);
  if constexpr (kEmit && L::kept && !is_plain<kKind>) in.source.a.forget(), in.source.b.forget();
  gradient(at, w, row.sums, row.stats, row.outer, du, dx);
  if constexpr (L::outer)
    totals.add(Sums::outer, v, k, p.d, [&](int i, float sum) { return fmaf(du[i], at.normed[i], sum); });
  source_gradient<kSilu>(p, in.source, in.incoming, f, dx, row.stats.r0, w.gate, row.sums.source_mean, dweight,
                         SourceOut<kExtra, A, L, kKind>(p, late, v, row.n, k));
  if constexpr (kKind == Kind::gate)
    totals.add(Sums::gate, v, k, p.d, [&](int i, float sum) { return sum + dweight[i]; });
  if constexpr (kEmit && is_plain<kKind>)
    in.source.x(p.source, f, w.gate, x), store_branches<A>(p, x, w, row.absmax, row.stats, row.n, k);
}

/// The backward pass. A block processes its rows one after the other, with two loops over a row's columns: the first
/// sums, the second stores. The only reduction over the block is between them: RowSums, the absmax of each branch, and
/// that of the LateRow. Column sums over rows are in registers (kept layouts) or in `partials`.
///
/// A branch's `out` is stored while x is in registers, or at the end if x is cheap to compute again, to save registers.
/// kExtra must not change a bit of the gradients: intrinsics fix the rounding wherever the compiler could make an fma
/// in one of the kernels and not in another. kSilu spares what other functions of a source need.
template <class L, Kind kKind, class S, class A, Extra kExtra, bool kSilu>
__global__ __launch_bounds__(L::threads, L::resident) void backward(const NormQuantBackwardArgs p, float* partials,
                                                                    float eps_inner) {
  constexpr int W = L::width;
  constexpr bool kEmit = kExtra != Extra::none, kRows = kExtra == Extra::rows;
  using Sums = WeightSums<L, kKind>;
  extern __shared__ uint4 shared[];
  __shared__ RowReduction<RowSums<L, kKind>::count, (kEmit ? L::branches : 0) + kRows> reduce;
  reduce.clear();
  begin_kernel();
  const auto each = [&](auto&& body) { each_vector<L::vectors, W>(p.d, body); };
  const bool outer = L::outer && p.outer;
  Sums totals(partials, p.d, each);
  Weights<L, kKind> w[L::held];
  Inputs<L, kKind, S, A> in[L::held];
  const Stages<L, kKind, S, A> stages(shared);
  if constexpr (L::kept) {
    each([&](int v, int64_t k) { w[v].load(p, k); });
    stages.copy(p, 0, blockIdx.x, each), stages.copy(p, 1, blockIdx.x + int64_t(gridDim.x), each);
  }
  auto next = Stats<L, kKind>::of(p, blockIdx.x);
  LateRow<L, kKind> late;
  int turn = 0;
  int64_t n = blockIdx.x;
  for (; n < p.n; n += gridDim.x, turn ^= 1) {
    const auto row = next;
    Columns<L> at[L::held];
    RowSums<L, kKind> sums;
    uint32_t absmax[L::branches + 1] = {};  // the last one is that of `late`
    const auto take = [&](int v, int64_t k, float(&x)[W]) {
      if constexpr (!L::kept) w[v].load(p, k), in[v].load(p, n, k);
      const auto f = in[v].source.template function<kSilu>(p.source);
      at[v].normalise(p, in[v].source, f, w[v].gate, row.r0 * row.r1, x);
      at[v].sum_branches(p, in[v], w[v]);
      return f;
    };
    if constexpr (L::kept) stages.wait();
    Function<kKind, kSilu, W> known[L::held];
    each([&](int v, int64_t k) {
      float x[W];
      if constexpr (L::kept) stages.load_source(in[v], turn, v), stages.load_douts(in[v], p, turn, v);
      known[v] = take(v, k, x);
      sums.add(at[v], w[v], row.r2);
      totals.add_branches(p, v, k, in[v], [&](int i) { return at[v].normed[i] * w[v].outer_or_1(i) * row.r2; });
      if constexpr (kEmit) find_absmax(p, x, w[v], absmax);
    });
    if (n + gridDim.x < p.n) next = Stats<L, kKind>::of(p, n + gridDim.x);
    if constexpr (kRows) absmax[L::branches] = late.absmax();
    reduce(turn, sums.of, absmax);
    if constexpr (kRows)
      if (n >= gridDim.x) late.store(p, n - gridDim.x, absmax[L::branches], each);
    sums.finish(row, 1.0f / float(p.d), eps_inner, p.r2, outer);
    each([&](int v, int64_t k) {
      float x[W];
      Function<kKind, kSilu, W> f;
      if constexpr (L::kept) {
        stages.load_source(in[v], turn, v), stages.load_incoming(in[v], p, turn, v);
        f = function_again<kEmit, kSilu>(p, in[v].source, at[v], w[v], row, known[v], x);
      } else {
        f = take(v, k, x);
      }
      finish_vector<A, kExtra>(p, {n, row, sums, absmax, outer}, v, k, f, in[v], at[v], w[v], x, totals, late);
    });
    if constexpr (L::kept) stages.copy(p, turn, n + 2 * int64_t(gridDim.x), each);
  }
  if constexpr (kRows) late.store_last(p, n - gridDim.x, reduce, turn, each);
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
    const auto bytes = [&]<class L>() { return Stages<L, kKind, S, A>::thread_bytes; };
    choose_layout<kKind, BackwardLayout>(p, aligned, bytes, [&]<class L>() {
      const bool silu = kKind == Kind::gate ? p.source.weight != nullptr : p.source.f == Activation::silu;
      if constexpr (L::kept && std::is_same_v<A, Bf16> && kKind != Kind::activation)
        if (p.rows) return with_silu<L, kKind, S, A, Extra::rows>(silu, p);
      with_values([&](const NormQuantBackwardArgs& q) {
        if (L::kept && !emits) return launch < L, kKind, S, A, L::kept ? Extra::none : Extra::branches > (q);
        with_silu<L, kKind, S, A, Extra::branches>(silu, q);
      });
    });
  }
  /// Calls run(args) for a kernel that does not write `rows`. If they are wanted, it makes them from the values.
  template <class Run>
  void with_values(Run&& run) const {
    if (!p.rows) return run(p);
    const bool two = p.source.kind == Kind::glu;
    NormQuantBackwardArgs q = p;
    Tensor values;
    if (!q.da) {
      values = Tensor({p.n, two ? 2 * p.d : p.d}, p.dtype, Device::cuda);
      q.da = values.raw_mut();
      if (two) q.db = values.raw_mut() + p.d * size_of(p.dtype);
    }
    run(q);
    gradient_rows({q.da, p.rows, p.row_steps, p.dtype, p.n, two ? 2 * p.d : p.d});
  }
  template <class L, Kind kKind, class S, class A, Extra kExtra>
  void with_silu(bool silu, const NormQuantBackwardArgs& q) const {
    if constexpr (L::kept && (kKind == Kind::glu || kKind == Kind::gate) && std::is_same_v<A, Bf16>)
      if (silu) return launch<L, kKind, S, A, kExtra, true>(q);
    launch<L, kKind, S, A, kExtra>(q);
  }
  template <class L, Kind kKind, class S, class A, Extra kExtra, bool kSilu = false>
  void launch(const NormQuantBackwardArgs& q) const {
    using Sums = WeightSums<L, kKind>;
    constexpr auto kernel = backward<L, kKind, S, A, kExtra, kSilu>;
    const int threads = row_threads<L>(q.d);
    const size_t shared = Stages<L, kKind, S, A>::thread_bytes * size_t(threads);
    MMFREE_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)));
    const int64_t blocks = persistent_blocks<kernel>(threads, q.n, shared);
    ColumnSums columns{nullptr, blocks, q.d, Sums::slots, {}};
    for (int b = 0; b < q.count; ++b)
      columns.of[b] = {static_cast<float*>(q.branches[b].dweight), float(q.branches[b].beta)};
    if constexpr (L::outer) columns.of[Sums::outer] = {static_cast<float*>(q.douter), float(q.beta_outer)};
    if constexpr (kKind == Kind::gate) columns.of[Sums::gate] = {static_cast<float*>(q.dweight), float(q.beta_weight)};
    Tensor partial;
    bool wanted = false;
    for (int slot = 0; slot < Sums::slots; ++slot) wanted |= columns.of[slot].out != nullptr;
    if (wanted) partial = Tensor({blocks, int64_t(Sums::slots), q.d}, DType::f32, Device::cuda);
    auto* partials = reinterpret_cast<float*>(partial.raw_mut());
    columns.partial = partials;
    if (blocks) {
      launch_kernel(kernel, {unsigned(blocks), unsigned(threads), shared}, q, partials, float(q.eps_inner));
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
  const bool aligned = rows_aligned(p) && all_aligned({p.incoming, p.da, p.db, p.rows});
  dispatch_source(p, "norm_quant_backward", RunBackward{p, aligned, emits});
}

}  // namespace mmfree::cuda
