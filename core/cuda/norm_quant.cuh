#pragma once
#include "core/cuda/rows.cuh"
#include "core/ops/norm_quant.h"

/// What the forward and the backward kernels of norm_quant share.
///
/// A thread owns the same columns of every row its block takes. Where a row fits in registers it is read once, weights
/// are read once per thread, and the next row is on its way while this one is reduced; else it is read twice, the
/// second time mostly from caches. There is one reduction per row: the norms of a row follow from sums over it.
namespace mmfree::cuda::fused {

using Kind = RowSource::Kind;

/// Kinds whose source and x have the same gradient.
template <Kind kKind>
constexpr bool is_plain = kKind == Kind::rows || kKind == Kind::sum;

constexpr int kMaxBranches = 3;

/// How a kernel takes a row: `vectors` vectors of `width` columns per thread in registers (0: re-read), up to
/// `branches` branches, with code for `outer` or without, in blocks of at most `threads`, `resident` or more of which
/// share a multiprocessor (this bounds the registers).
template <int kVectors, int kWidth, int kBranches, bool kOuter, int kThreads, int kResident = 1>
struct Layout {
  static constexpr int vectors = kVectors, width = kWidth, branches = kBranches, threads = kThreads,
                       resident = kResident;
  static constexpr bool outer = kOuter, kept = kVectors > 0;
  static constexpr int held = kept ? kVectors : 1;
};
/// Widest row that a kept layout takes.
template <class L>
constexpr int64_t most_columns = int64_t(L::vectors) * L::width* L::threads;

/// A RowSource as kernels take it.
struct Source {
  const void *a, *b;
  const float* weight;
  float eps;
};

/// Some columns of a row of the source, as stored.
template <Kind kKind, class S, class A, int W>
struct Chunk {
  Loaded<S, W> a;
  Loaded<A, W> b;  // sum, gate: of b; swiglu: of the right half of a

  __device__ void load(const Source& s, int64_t n, int64_t k, int64_t d) {
    const S* row = static_cast<const S*>(s.a) + n * (kKind == Kind::swiglu ? 2 * d : d) + k;
    a.load(row);
    if constexpr (kKind == Kind::swiglu) b.load(row + d);
    if constexpr (kKind == Kind::sum || kKind == Kind::gate) b.load(static_cast<const A*>(s.b) + n * d + k);
  }
  /// x at column i of the chunk, for a gate without its factor r0.
  __device__ float x(int i, float weight, bool normed) const {
    const float left = a[i];
    if constexpr (kKind == Kind::rows) return left;
    const float right = b[i];
    if constexpr (kKind == Kind::sum) return to_float(from_float<S>(left + right));
    if constexpr (kKind == Kind::swiglu) return silu(left, sigmoid<A>(left)) * right;
    const float s = sigmoid<A>(right);
    return left * weight * (normed ? silu(right, s) : s);
  }
};

/// All weights at the columns of a chunk; neutral where there are none.
template <class L, Kind kKind>
struct Weights {
  float outer[L::width], gate[L::width], branch[L::branches][L::width];

  template <class Args>
  __device__ void load(const Args& p, int64_t k) {
    take(outer, L::outer ? p.outer : nullptr, k, 1);
    take(gate, kKind == Kind::gate ? p.source.weight : nullptr, k, 1);
#pragma unroll
    for (int b = 0; b < L::branches; ++b) take(branch[b], b < p.count ? p.branches[b].weight : nullptr, k, 0);
  }
  static __device__ void take(float (&to)[L::width], const float* from, int64_t k, float otherwise) {
    if (from) return cuda::load(to, from + k);
#pragma unroll
    for (int i = 0; i < L::width; ++i) to[i] = otherwise;
  }
};

/// Stores values of a branch as its rounding leaves them.
template <class A, int W>
__device__ void store_rounded(A* to, const float (&v)[W], Rounding rounding, ActivationScale<float> q) {
  float rounded[W];
#pragma unroll
  for (int i = 0; i < W; ++i) {
    rounded[i] = v[i];
    if (rounding == Rounding::int8) rounded[i] = float(quantise(v[i], q.inverse)) * q.step;
    if (rounding == Rounding::bf16) rounded[i] = to_float(from_float<Bf16>(v[i]));
  }
  store(to, rounded);
}

/// Anything else.
template <int kWidth>
using AnyLayout = Layout<0, kWidth, kMaxBranches, true, 512>;

/// Calls run.operator()<L>() with the layout for a call.
template <Kind kKind, template <Kind, int> class Kept, class Run>
void choose_layout(int64_t d, size_t branches, bool outer, bool aligned, Run&& run) {
  constexpr bool plain = is_plain<kKind>;
  const bool wide = aligned && d % 8 == 0;
  if (!wide) return run.template operator()<AnyLayout<1>>();
  if constexpr (plain)
    if (branches > 1 && d <= most_columns<Kept<kKind, kMaxBranches>>)
      return run.template operator()<Kept<kKind, kMaxBranches>>();
  if (branches == 1 && (plain || !outer) && d <= most_columns<Kept<kKind, 1>>)
    return run.template operator()<Kept<kKind, 1>>();
  run.template operator()<AnyLayout<8>>();
}

/// Calls run.operator()<kind, S, A>() with S the dtype of the source's a and A that of the call.
template <class Run>
void dispatch_source(const RowSourceArgs& s, DType activations, const char* op, Run&& run) {
  dispatch_activation(activations, op, [&]<class A>() {
    const auto plain = [&]<Kind kKind>() {
      if (s.type_a == activations) return run.template operator()<kKind, A, A>();
      if constexpr (!std::is_same_v<A, float>)
        if (s.type_a == DType::f32) return run.template operator()<kKind, float, A>();
      throw DTypeError(concat(op, ": a of ", name_of(s.type_a), " with activations of ", name_of(activations)));
    };
    if (s.kind == Kind::rows) return plain.template operator()<Kind::rows>();
    if (s.kind == Kind::gate) return run.template operator()<Kind::gate, A, A>();
    if (s.kind == Kind::swiglu) return run.template operator()<Kind::swiglu, A, A>();
    return plain.template operator()<Kind::sum>();
  });
}

inline Source source_of(const RowSourceArgs& s) {
  return {s.a, s.b, static_cast<const float*>(s.weight), float(s.eps)};
}

inline void check_branches(size_t count, const char* op) {
  MMFREE_CHECK(ShapeError, count >= 1 && count <= kMaxBranches, op, ": a GPU takes 1 to ", kMaxBranches,
               " branches, got ", count);
}

inline bool all_aligned(std::initializer_list<const void*> pointers) {
  for (const void* p : pointers)
    if (!is_aligned(p)) return false;
  return true;
}

}  // namespace mmfree::cuda::fused
