#pragma once
#include "core/cuda/rows.cuh"
#include "core/ops/norm_quant.h"

/// What the forward and the backward kernels of norm_quant share.
///
/// A block processes one row after the other; a thread has the same columns of each. If a row fits in registers (a kept
/// layout), it is read once, weights are read once per thread, and the next row is on its way while this one is
/// computed. Otherwise a row is read twice, the second time mostly from caches. There is one reduction per row: all
/// norms of a row follow from its sums.
namespace mmfree::cuda::fused {

using Kind = RowSource::Kind;

/// Kinds whose source and x have the same gradient.
template <Kind kKind>
constexpr bool is_plain = kKind == Kind::rows || kKind == Kind::sum;

/// The shape of a kernel:
///   vectors   vectors of `width` columns that a thread keeps in registers; 0: the row is read twice
///   branches  most branches
///   outer     whether the kernel has code for a block norm
///   threads   most threads of a block
///   resident  blocks that a multiprocessor must hold at a time, which limits the registers
template <int kVectors, int kWidth, int kBranches, bool kOuter, int kThreads, int kResident = 1>
struct Layout {
  static constexpr int vectors = kVectors, width = kWidth, branches = kBranches, threads = kThreads,
                       resident = kResident;
  static constexpr bool outer = kOuter, kept = kVectors > 0;
  static constexpr int held = kept ? kVectors : 1;
};
/// Columns of the widest row for a kept layout.
template <class L>
constexpr int64_t most_columns = int64_t(L::vectors) * L::width* L::threads;

/// Values and slopes of a source's function at W columns: of a gate SiLU(b), or σ(b) without a weight; of glu and
/// activation f(a). Rows and sums have none. `kSilu`: it is known to be SiLU. Where it follows from σ only σ is held,
/// which spares registers.
template <Kind kKind, bool kSilu, int W>
struct Function {
  static constexpr bool by_sigmoid = kKind == Kind::gate || kSilu;
  float first[W];                    // σ, or the value
  float second[by_sigmoid ? 1 : W];  // the slope

  static __device__ bool is_silu(const RowSourceArgs& s) { return kSilu || (kKind == Kind::gate && s.weight); }
  /// `x` is what the function is applied to.
  __device__ float value(const RowSourceArgs& s, int i, float x) const {
    return is_silu(s) ? silu(x, first[i]) : first[i];
  }
  __device__ float slope(const RowSourceArgs& s, int i, float x) const {
    if constexpr (!by_sigmoid) return second[i];
    return is_silu(s) ? silu_slope(x, first[i]) : first[i] * (1.0f - first[i]);
  }
};

/// W columns of a row of the source, in the dtypes of memory.
template <Kind kKind, class S, class A, int W>
struct Chunk {
  Loaded<S, W> a;
  Loaded<A, W> b;  // sum, gate, glu: of b

  __device__ void load(const RowSourceArgs& s, int64_t n, int64_t k, int64_t d) {
    const int64_t place = n * (kKind == Kind::glu ? s.stride : d) + k;
    a.load(static_cast<const S*>(s.a) + place);
    if constexpr (kKind == Kind::sum || kKind == Kind::gate || kKind == Kind::glu)
      b.load(static_cast<const A*>(s.b) + place);
  }
  /// What the source's function is applied to.
  __device__ float operand(int i) const { return kKind == Kind::gate ? b[i] : a[i]; }
  template <bool kSilu = false>
  __device__ Function<kKind, kSilu, W> function(const RowSourceArgs& s) const {
    Function<kKind, kSilu, W> to{};
    if constexpr (to.by_sigmoid) {
#pragma unroll
      for (int i = 0; i < W; ++i) to.first[i] = sigmoid<A>(operand(i));
    } else if constexpr (!is_plain<kKind>) {
      with_activation(s.f, [&]<Activation f>() {
#pragma unroll
        for (int i = 0; i < W; ++i) {
          const Activated<float> at = activated<f, Maths<A>>(a[i]);
          to.first[i] = at.value, to.second[i] = at.slope;
        }
      });
    }
    return to;
  }
  /// x at the chunk's columns; of a gate without the factor r0. `f` is `function`.
  template <bool kSilu>
  __device__ void x(const RowSourceArgs& s, const Function<kKind, kSilu, W>& f, const float (&weight)[W],
                    float (&to)[W]) const {
#pragma unroll
    for (int i = 0; i < W; ++i) {
      if constexpr (kKind == Kind::rows) to[i] = a[i];
      if constexpr (kKind == Kind::sum) to[i] = to_float(from_float<S>(a[i] + b[i]));
      if constexpr (kKind == Kind::gate) to[i] = a[i] * weight[i] * f.value(s, i, b[i]);
      if constexpr (kKind == Kind::glu) to[i] = f.value(s, i, a[i]) * b[i];
      if constexpr (kKind == Kind::activation) to[i] = f.value(s, i, a[i]);
    }
  }
};

/// All weights at the columns of a chunk; 1 for a missing one.
template <class L, Kind kKind>
struct Weights {
  float outer[L::width], gate[L::width], branch[L::branches][L::width];

  __device__ float outer_or_1(int i) const { return L::outer ? outer[i] : 1.0f; }
  __device__ void load(const NormArgs& p, int64_t k) {
    take(outer, L::outer ? p.outer : nullptr, k);
    take(gate, kKind == Kind::gate ? p.source.weight : nullptr, k);
#pragma unroll
    for (int b = 0; b < L::branches; ++b) take(branch[b], b < p.count ? p.branches[b].weight : nullptr, k);
  }
  static __device__ void take(float (&to)[L::width], const void* from, int64_t k) {
    if (from) return cuda::load(to, static_cast<const float*>(from) + k);
#pragma unroll
    for (int i = 0; i < L::width; ++i) to[i] = 1;
  }
};

/// code · step of a value, with the bits of float(activation_code(v, q.inverse)) * q.step: truncated in floats, because
/// two conversions less are faster. Adding 0 makes a code of -0 the 0 that an integer is.
__device__ inline float rounded_activation(float v, ActivationScale<float> q) {
  const float scaled = __fmul_rn(v, q.inverse);
  return __fmaf_rn(truncf(scaled + copysignf(kBelowHalf, scaled)), q.step, 0.0f);
}

/// Rounds values of a branch and stores them as floats.
template <class A, int W>
__device__ void store_values(const NormBranchArgs& b, int64_t place, const float (&v)[W], ActivationScale<float> q) {
  if (b.rounding == Rounding::none) return store(static_cast<float*>(b.out) + place, v);
  float rounded[W];
  if (b.rounding == Rounding::int8) {
#pragma unroll
    for (int i = 0; i < W; ++i) rounded[i] = rounded_activation(v[i], q);
  } else {
#pragma unroll
    for (int i = 0; i < W; ++i) rounded[i] = to_float(from_float<Bf16>(v[i]));
  }
  store(static_cast<A*>(b.out) + place, rounded);
}

/// Rounds values of a branch and stores them: codes if the branch has steps, else values.
template <class A, int W>
__device__ void store_branch(const NormBranchArgs& b, int64_t place, const float (&v)[W], ActivationScale<float> q) {
  if (!b.step) return store_values<A>(b, place, v, q);
  Pack<int8_t, W> codes;
#pragma unroll
  for (int i = 0; i < W; ++i) codes.at[i] = activation_code(v[i], q.inverse);
  *reinterpret_cast<Pack<int8_t, W>*>(static_cast<int8_t*>(b.out) + place) = codes;
}

/// Most branches of a kept layout.
constexpr int kKeptBranches = 3;

/// The layout for all other calls.
template <int kWidth>
using AnyLayout = Layout<0, kWidth, int(kMaxNormBranches), true, 512>;

/// Whether some branches have a weight and some do not.
inline bool are_mixed(const NormArgs& p) {
  int normed = 0;
  for (int b = 0; b < p.count; ++b) normed += p.branches[b].weight != nullptr;
  return normed != 0 && normed != p.count;
}

/// Threads of a block for rows of d columns.
template <class L>
int row_threads(int64_t d) {
  return threads_for(ceil_div(d, L::width * L::held), L::threads);
}

/// Calls run.operator()<L>() with the layout for a call. `bytes.operator()<L>()`: shared memory of a thread in a kept
/// one.
template <Kind kKind, template <Kind, int> class Kept, class Bytes, class Run>
void choose_layout(const NormArgs& p, bool aligned, Bytes&& bytes, Run&& run) {
  constexpr bool plain = is_plain<kKind>;
  constexpr size_t kOwn = 2048;  // at least what the kernels have besides
  const auto fits = [&]<class L>() {
    return p.d <= most_columns<L> && bytes.template operator()<L>() * row_threads<L>(p.d) + kOwn <= shared_memory();
  };
  const bool wide = aligned && p.d % 8 == 0;
  if (!wide) return run.template operator()<AnyLayout<1>>();
  if (are_mixed(p)) return run.template operator()<AnyLayout<8>>();
  if constexpr (plain)
    if (p.count > 1 && p.count <= kKeptBranches && fits.template operator()<Kept<kKind, kKeptBranches>>())
      return run.template operator()<Kept<kKind, kKeptBranches>>();
  if (p.count == 1 && (plain || !p.outer) && fits.template operator()<Kept<kKind, 1>>())
    return run.template operator()<Kept<kKind, 1>>();
  run.template operator()<AnyLayout<8>>();
}

/// Calls run.operator()<kind, S, A>() with S the dtype of the source's a and A that of the call.
template <class Run>
void dispatch_source(const NormArgs& p, const char* op, Run&& run) {
  dispatch_activation(p.dtype, op, [&]<class A>() {
    const auto plain = [&]<Kind kKind>() {
      if (p.source.type_a == p.dtype) return run.template operator()<kKind, A, A>();
      if constexpr (!std::is_same_v<A, float>)
        if (p.source.type_a == DType::f32) return run.template operator()<kKind, float, A>();
      throw DTypeError(concat(op, ": a of ", name_of(p.source.type_a), " with activations of ", name_of(p.dtype)));
    };
    switch (p.source.kind) {
      case Kind::rows:
        return plain.template operator()<Kind::rows>();
      case Kind::sum:
        return plain.template operator()<Kind::sum>();
      case Kind::gate:
        return run.template operator()<Kind::gate, A, A>();
      case Kind::glu:
        return run.template operator()<Kind::glu, A, A>();
      case Kind::activation:
        return run.template operator()<Kind::activation, A, A>();
    }
    throw Error(concat(op, ": a GPU has no source kind ", int(p.source.kind)));
  });
}

inline bool all_aligned(std::initializer_list<const void*> pointers) {
  for (const void* p : pointers)
    if (!is_aligned(p)) return false;
  return true;
}

/// Whether all arrays of both directions are aligned for vector access.
inline bool rows_aligned(const NormArgs& p) {
  bool aligned = all_aligned({p.source.a, p.source.b, p.source.weight, p.outer});
  for (int b = 0; b < p.count; ++b)
    aligned = aligned && all_aligned({p.branches[b].weight, p.branches[b].out, p.branches[b].dout});
  return aligned;
}

}  // namespace mmfree::cuda::fused
