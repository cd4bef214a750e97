#pragma once
#include "core/cuda/copies.cuh"
#include "core/cuda/decode.h"
#include "core/cuda/rows.cuh"

/// The norm of a row by a block of kThreads, for every kernel that needs one.
namespace mmfree::cuda::decode {

/// Sums of x², (x · outer)² and a², and the largest magnitude of each branch.
using Reduction = RowReduction<3, kMostMatrices>;

/// What follows from the sums of a row.
struct RowFactors {
  float factor[kMostMatrices];  ///< of x · outer · weight, without the gate's r0 in x
  ActivationScale<float> scale[kMostMatrices];
};

/// Calls body(k) for the vectors of V columns of this thread.
template <int V, class Body>
__device__ inline void each_column(int d, Body&& body) {
#pragma unroll 1
  for (int k = int(threadIdx.x) * V; k < d; k += kThreads * V) body(k);
}

/// Columns of a row of d floats in shared memory.
__host__ __device__ inline int padded(int d) { return (d + 3) / 4 * 4; }
/// Number of the norm's weight vectors: of the block norm, the gate and the branches.
__host__ __device__ inline int norm_weights(const Norm& p) {
  int count = (p.outer != nullptr) + (p.weight != nullptr);
  for (int b = 0; b < p.count; ++b) count += p.branches[b].weight != nullptr;
  return count;
}

/// The functions of core/activation.h. The quotient of σ is exact to two units in the last place and has no branches.
struct Quick {
  static __device__ float exp(float x) { return expf(x); }
  static __device__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + expf(-x)); }
  static __device__ float erf(float x) { return erff(x); }
};

/// The norm's weight vectors, null where there is none.
struct NormWeights {
  const float *outer, *gate, *branch[kMostMatrices];
  /// Where `norm` says.
  __device__ explicit NormWeights(const Norm& p) : outer(p.outer), gate(p.weight) {
#pragma unroll
    for (int b = 0; b < kMostMatrices; ++b) branch[b] = b < p.count ? p.branches[b].weight : nullptr;
  }
  /// Calls move(vector) for each of those that there are.
  template <class Move>
  __device__ void each(Move&& move) {
    if (outer) move(outer);
    if (gate) move(gate);
#pragma unroll
    for (const float*& b : branch)
      if (b) move(b);
  }
};

/// Starts copies of the weights to `to`, shared memory of norm_weights(p) · padded(d). A thread copies the columns that
/// it will read. Call it before begin_kernel, and wait_copies before norm_row.
__device__ inline void stage_weights(NormWeights& w, int d, float* to) {
  w.each([&](const float*& from) {
    each_column<4>(d, [&](int k) { copy_async(to + k, from + k); });
    from = to;
    to += padded(d);
  });
  commit_copies();
}

/// A row of d columns as norm_row reads and keeps it, a thread having every kThreads-th vector of V columns: here its
/// sources `a` and `b` are in memory, x is kept in `xs`, and the value of a sum goes to `sum` unless that is null.
template <int V>
struct StoredRow {
  static constexpr int kWidth = V, kBranches = kMostMatrices;
  static constexpr bool kActivations = true;  ///< whether the source may be a glu or an activation
  const NormWeights& weights;
  int d;
  const float *a, *b;
  float *sum, *xs;

  /// Calls body(v, k) for each of this thread's vectors: its number among them where that matters, and its first
  /// column.
  template <class Body>
  __device__ void each(Body&& body) const {
    each_column<V>(d, [&](int k) { body(0, k); });
  }
  __device__ void sources(int, int k, bool both, float (&left)[V], float (&right)[V]) const {
    load(left, a + k);
    if (both) load(right, b + k);
  }
  __device__ void gate(int, int k, float (&w)[V]) const { load(w, weights.gate + k); }
  /// Whether there is such a weight vector, whose columns are then `w`.
  __device__ bool outer(int, int k, float (&w)[V]) const {
    if (weights.outer) load(w, weights.outer + k);
    return weights.outer;
  }
  __device__ bool branch(int b, int, int k, float (&w)[V]) const {
    if (weights.branch[b]) load(w, weights.branch[b] + k);
    return weights.branch[b];
  }
  __device__ void put_sum(int, int k, const float (&x)[V]) const {
    if (sum) store(sum + k, x);
  }
  __device__ void put(int, int k, const float (&x)[V]) { store(xs + k, x); }
  __device__ void get(int, int k, float (&x)[V]) const { load(x, xs + k); }
};

/// Puts x of a row, without the gate's r0. Returns this thread's part of Σ a² for a gate.
template <class Row>
__device__ float source_row(const Norm& p, bool weighted, Row& row) {
  constexpr int V = Row::kWidth;
  float squares = 0;
  const auto fill = [&](bool both, auto&& value) {
    row.each([&](int v, int k) {
      float left[V], right[V] = {}, x[V];
      row.sources(v, k, both, left, right);
      value(v, k, left, right, x);
      row.put(v, k, x);
    });
  };
  switch (p.kind) {
    case RowSource::rows:
      fill(false, [&](int, int, auto& left, auto&, auto& x) {
#pragma unroll
        for (int i = 0; i < V; ++i) x[i] = left[i];
      });
      break;
    case RowSource::sum:
      fill(true, [&](int v, int k, auto& left, auto& right, auto& x) {
#pragma unroll
        for (int i = 0; i < V; ++i) x[i] = left[i] + right[i];
        row.put_sum(v, k, x);
      });
      break;
    case RowSource::gate:
      fill(true, [&](int v, int k, auto& left, auto& right, auto& x) {
        float w[V];
        if (weighted) row.gate(v, k, w);
#pragma unroll
        for (int i = 0; i < V; ++i) {
          const float gate = Quick::sigmoid(right[i]);
          squares = fmaf(left[i], left[i], squares);
          x[i] = weighted ? left[i] * w[i] * silu(right[i], gate) : left[i] * gate;
        }
      });
      break;
    default:
      if constexpr (Row::kActivations) {
        const bool glu = p.kind == RowSource::glu;
        with_activation(p.f, [&]<Activation f>() {
          fill(glu, [&](int, int, auto& left, auto& right, auto& x) {
#pragma unroll
            for (int i = 0; i < V; ++i) {
              x[i] = activated<f, Quick>(left[i]).value;
              if (glu) x[i] = __fmul_rn(x[i], right[i]);
            }
          });
        });
      }
      break;
  }
  return squares;
}

/// What follows from the sums of a row. `weights` says which there are.
template <int kBranches>
__device__ RowFactors row_factors(const Norm& p, const NormWeights& weights, const float (&sums)[3],
                                  const uint32_t (&most)[kBranches]) {
  const float inverse = p.inverse_d;
  const float r0 =
      p.kind == RowSource::gate && weights.gate ? rms_reciprocal(__fmul_rn(sums[2], inverse), p.eps_gate) : 1.0f;
  const float r1 = weights.outer ? rms_reciprocal(__fmul_rn(r0 * r0 * sums[0], inverse), p.eps_outer) : 1.0f;
  const float r01 = r0 * r1;
  const float squares = r01 * r01 * (weights.outer ? sums[1] : sums[0]);
  const float r2 = rms_reciprocal(__fmul_rn(squares, inverse), p.eps_inner);
  RowFactors out;
  float largest[kBranches];
#pragma unroll
  for (int b = 0; b < kBranches; ++b) {
    out.factor[b] = b < p.count && weights.branch[b] ? r01 * r2 : r01;
    largest[b] = __uint_as_float(most[b]) * out.factor[b];
  }
  if constexpr (kBranches == 1) {
    out.scale[0] = activation_scale(largest[0]);
  } else {
    // The quotients of branch b are computed by every lane 4 i + b, and handed to the others.
    static_assert(kBranches == 4);
    const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
    const float low_two = odd ? largest[1] : largest[0], high_two = odd ? largest[3] : largest[2];
    const ActivationScale<float> own = activation_scale(high ? high_two : low_two);
#pragma unroll
    for (int b = 0; b < kBranches; ++b)
      out.scale[b] = {__shfl_sync(0xffffffffu, own.inverse, b), __shfl_sync(0xffffffffu, own.step, b)};
  }
  return out;
}

/// The norm of a row. Calls emit(branch, k, v, scale) for the V values v of each branch from column k on, which are not
/// rounded yet. `turn` alternates from call to call.
template <class Row, class Reduction, class Emit>
__device__ RowFactors norm_row(const Norm& p, const NormWeights& weights, Row& row, Reduction& reduce, int turn,
                               Emit&& emit) {
  constexpr int V = Row::kWidth, kBranches = Row::kBranches;
  float sums[3] = {0, 0, source_row(p, weights.gate, row)};
  uint32_t most[kBranches] = {};
  row.each([&](int v, int k) {
    float x[V], w[V];
    row.get(v, k, x);
#pragma unroll
    for (int i = 0; i < V; ++i) sums[0] = fmaf(x[i], x[i], sums[0]);
    if (row.outer(v, k, w)) {
#pragma unroll
      for (int i = 0; i < V; ++i) x[i] *= w[i], sums[1] = fmaf(x[i], x[i], sums[1]);
      row.put(v, k, x);
    }
#pragma unroll
    for (int b = 0; b < kBranches; ++b) {
      if (kBranches > 1 && b >= p.count) break;
      const bool weighted = row.branch(b, v, k, w);
#pragma unroll
      for (int i = 0; i < V; ++i) most[b] = max(most[b], magnitude(weighted ? __fmul_rn(x[i], w[i]) : x[i]));
    }
  });
  reduce.template add<3, kBranches>(turn, sums, most);
  const RowFactors factors = row_factors(p, weights, sums, most);
  row.each([&](int v, int k) {
    float x[V], w[V], value[V];
    row.get(v, k, x);
#pragma unroll
    for (int b = 0; b < kBranches; ++b) {
      if (kBranches > 1 && b >= p.count) break;
      const bool weighted = row.branch(b, v, k, w);
#pragma unroll
      for (int i = 0; i < V; ++i) value[i] = __fmul_rn(weighted ? __fmul_rn(x[i], w[i]) : x[i], factors.factor[b]);
      emit(b, k, value, factors.scale[b]);
    }
  });
  return factors;
}

/// V codes of values.
template <int V>
__device__ inline void store_codes(int8_t* to, const float (&v)[V], ActivationScale<float> scale) {
  Pack<int8_t, V> codes;
#pragma unroll
  for (int i = 0; i < V; ++i) codes.at[i] = activation_code(v[i], scale.inverse);
  *reinterpret_cast<Pack<int8_t, V>*>(to) = codes;
}

/// Whether all rows can be read four columns at a time.
inline bool in_fours(const Norm& p) {
  bool fits = p.d % 4 == 0 && p.stride % 4 == 0;
  for (const void* a :
       {static_cast<const void*>(p.a), static_cast<const void*>(p.b), static_cast<const void*>(p.weight),
        static_cast<const void*>(p.outer), static_cast<const void*>(p.x)})
    fits = fits && is_aligned(a);
  for (int b = 0; b < p.count; ++b) fits = fits && is_aligned(p.branches[b].weight) && is_aligned(p.branches[b].out);
  return fits;
}

/// What a step of the recurrence does to the state: h = keep · h + add.
struct Gates {
  float keep, add;
  Gates() = default;
  __device__ Gates(float z, float a, float gamma) {
    keep = fmaf(1.0f - gamma, Quick::sigmoid(z), gamma);
    add = __fmul_rn(silu(a, Quick::sigmoid(a)), 1.0f - keep);
  }
  __device__ float next(float h) const { return fmaf(keep, h, add); }
};

/// The sum of a ternary product as a value.
__device__ inline float scaled(int sum, float step, float scale) {
  return __fmul_rn(float(sum), __fmul_rn(step, scale));
}

/// f(a) ⊙ b.
template <Activation f>
__device__ inline float gated(float a, float b) {
  return __fmul_rn(activated<f, Quick>(a).value, b);
}

/// The weights of a packed word in bytes: at[i] has columns 4 i to 4 i + 3.
struct Weights16 {
  uint32_t at[4];
  __device__ explicit Weights16(uint32_t word) {
    const uint32_t even = word & 0x33333333u, odd = word >> 2 & 0x33333333u;
    at[0] = choose(even), at[1] = choose(even >> 16), at[2] = choose(odd), at[3] = choose(odd >> 16);
  }
  /// Bytes -1, 0 or 1 as the lower four halves of bytes say.
  static __device__ uint32_t choose(uint32_t which) {
    uint32_t bytes;
    asm("prmt.b32 %0, %1, 0, %2;" : "=r"(bytes) : "r"(0x000100ffu), "r"(which));
    return bytes;
  }
};

}  // namespace mmfree::cuda::decode
