#include "core/cuda/column_sums.cuh"
#include "core/cuda/rows.cuh"
#include "core/ops/norm_quant.h"
#include "core/tensor.h"

/// A thread owns the same columns of every row its block takes. Where a row fits in registers it is read once, weights
/// are read once per thread, and the next row is on its way while this one is reduced; else it is read twice, the
/// second time mostly from caches. There is one reduction per row: the norms of a row follow from sums over it.
namespace mmfree::cuda {
namespace {

using Kind = RowSource::Kind;

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
__device__ void store_rounded(const Forward::Branch& b, int64_t place, const float (&v)[W], ActivationScale<float> q) {
  if (b.step) {
    Pack<int8_t, W> codes;
#pragma unroll
    for (int i = 0; i < W; ++i) codes.at[i] = quantise(v[i], q.inverse);
    *reinterpret_cast<Pack<int8_t, W>*>(static_cast<int8_t*>(b.out) + place) = codes;
    return;
  }
  float rounded[W];
#pragma unroll
  for (int i = 0; i < W; ++i) {
    rounded[i] = v[i];
    if (b.rounding == Rounding::int8) rounded[i] = float(quantise(v[i], q.inverse)) * q.step;
    if (b.rounding == Rounding::bf16) rounded[i] = to_float(from_float<Bf16>(v[i]));
  }
  store(static_cast<A*>(b.out) + place, rounded);
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
        store_rounded<A>(p.branches[b], n * p.d + k, value, q[b]);
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

struct Backward {
  struct Branch {
    const float* weight;
    const void* dout;
  };
  Source source;
  const float *outer, *r0, *r1, *r2;
  const void* incoming;
  void *da, *db;
  float* partial;  ///< [blocks, slots, d]: sums over a block's rows, or null
  float eps_inner;
  int64_t n, d;
  int count;
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
    if constexpr (kKind == Kind::rows) take(incoming, p.incoming, n * p.d + k);
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
  __device__ void add(int slot, int v, int64_t k, int64_t d, const float (&terms)[L::width]) {
    if constexpr (L::kept) {
#pragma unroll
      for (int i = 0; i < L::width; ++i) kept[slot][v][i] += terms[i];
    } else if (partial) {
      float sum[L::width];
      load(sum, partial + slot * d + k);
#pragma unroll
      for (int i = 0; i < L::width; ++i) sum[i] += terms[i];
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
    if constexpr (kKind == Kind::rows) {
      da[i] = dx[i] + incoming[i];
    } else if constexpr (kKind == Kind::swiglu) {
      const float up = source.b[i], s = sigmoid<A>(a);
      da[i] = dx[i] * up * silu_slope(a, s);
      db[i] = dx[i] * silu(a, s);
    } else {
      const float b = source.b[i], s = sigmoid<A>(b), normed = a * r0;
      const float t = dx[i] * (p.source.weight ? silu(b, s) : s);
      dweight[i] = t * normed;
      da[i] = p.source.weight ? r0 * (t * weight[i] - normed * mean) : t;
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

/// With û = u r2 and c = mean(û s), the only reduction: mean(û²) = 1 − eps_inner r2², so for x̂ and g of the outer norm
/// mean(x̂ g) = mean(u du) = c (1 − mean(û²)) = c eps_inner r2². Likewise mean(x dx), which the gate's norm needs, is
/// c eps_inner r2² without `outer`, and that times 1 − mean(x̂²) with it.
template <class L, Kind kKind, class S, class A>
__global__ __launch_bounds__(L::threads, L::resident) void backward(const Backward p) {
  constexpr int W = L::width, kSums = 1 + (kKind == Kind::gate && L::outer);
  __shared__ RowReduction<kSums, 0> reduce;
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
    const auto take = [&](int v, int64_t k) {
      if constexpr (!L::kept) w[v].load(p, k), in[v].load(p, n, k);
#pragma unroll
      for (int i = 0; i < W; ++i) {
        normed[v][i] = in[v].source.x(i, w[v].gate[i], p.source.weight) * r01;
        s[v][i] = 0;
#pragma unroll
        for (int b = 0; b < L::branches; ++b) s[v][i] += w[v].branch[b][i] * in[v].dout[b][i];
      }
    };
    const auto u_hat = [&](int v, int i) { return normed[v][i] * (L::outer ? w[v].outer[i] : 1.0f) * row.r2; };

    float sums[kSums] = {};
    each([&](int v, int64_t k) {
      take(v, k);
#pragma unroll
      for (int i = 0; i < W; ++i) {
        sums[0] += u_hat(v, i) * s[v][i];
        if constexpr (kSums > 1) sums[1] += normed[v][i] * normed[v][i];
      }
#pragma unroll
      for (int b = 0; b < L::branches; ++b) {
        float terms[W];
#pragma unroll
        for (int i = 0; i < W; ++i) terms[i] = in[v].dout[b][i] * u_hat(v, i);
        totals.add(b, v, k, p.d, terms);
      }
    });
    Chunk<kKind, S, A, W> source[L::held];
    Loaded<A, W> incoming[L::held];
    each([&](int v, int64_t) { source[v] = in[v].source, incoming[v] = in[v].incoming; });
    if (n + gridDim.x < p.n) {
      if constexpr (L::kept) each([&](int v, int64_t k) { in[v].load(p, n + gridDim.x, k); });
      next.load(p, n + gridDim.x);
    }
    reduce(turn, sums, nullptr);

    const float c = sums[0] * share, rest = c * p.eps_inner * row.r2 * row.r2;
    const bool outer = L::outer && p.outer;
    const float mean = kSums > 1 && outer ? rest * (1.0f - sums[kSums - 1] * share) : rest;
    each([&](int v, int64_t k) {
      if constexpr (!L::kept) take(v, k), source[v] = in[v].source, incoming[v] = in[v].incoming;
      float dx[W], terms[W];
#pragma unroll
      for (int i = 0; i < W; ++i) {
        dx[i] = row.r2 * (s[v][i] - u_hat(v, i) * c);
        if constexpr (L::outer) {
          terms[i] = dx[i] * normed[v][i];
          if (outer) dx[i] = row.r1 * (dx[i] * w[v].outer[i] - normed[v][i] * rest);
        }
      }
      if constexpr (L::outer) totals.add(Sums::outer, v, k, p.d, terms);
      store_source_gradient(p, source[v], incoming[v], n, k, dx, row.r0, w[v].gate, mean, terms);
      if constexpr (kKind == Kind::gate) totals.add(Sums::gate, v, k, p.d, terms);
    });
  }
  totals.finish(p.d, each);
}

/// Rows and sums up to these widths stay in registers; so do gates and swiglus of one branch and without `outer`, the
/// only ones that occur on hot paths. Few bytes per column call for more columns per thread, which share the cost of
/// the reduction.
template <Kind kKind, int kBranches>
using ForwardLayout =
    std::conditional_t<kKind == Kind::swiglu, Layout<2, 8, 1, false, 384, 2>,
                       std::conditional_t<kKind == Kind::gate, Layout<2, 8, 1, false, 192, 3>,
                                          std::conditional_t<kBranches == 1, Layout<1, 8, 1, true, 384, 2>,
                                                             Layout<1, 8, kBranches, true, 320, 2>>>>;
template <Kind kKind, int kBranches>
using BackwardLayout =
    std::conditional_t<kKind == Kind::swiglu, Layout<1, 8, 1, false, 704>,
                       std::conditional_t<kKind == Kind::gate, Layout<1, 8, 1, false, 512>,
                                          std::conditional_t<kBranches == 1, Layout<1, 8, 1, true, 320, 2>,
                                                             Layout<1, 8, kBranches, true, 512>>>>;
/// Anything else.
template <int kWidth>
using AnyLayout = Layout<0, kWidth, kMaxBranches, true, 512>;

/// Calls run.operator()<L>() with the layout for a call.
template <Kind kKind, template <Kind, int> class Kept, class Run>
void choose_layout(int64_t d, size_t branches, bool outer, bool aligned, Run&& run) {
  constexpr bool plain = kKind == Kind::rows || kKind == Kind::sum;
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
    if constexpr (Run::sums) return plain.template operator()<Kind::sum>();
  });
}

Source source_of(const RowSourceArgs& s) { return {s.a, s.b, static_cast<const float*>(s.weight), float(s.eps)}; }

void check_branches(size_t count, const char* op) {
  MMFREE_CHECK(ShapeError, count >= 1 && count <= kMaxBranches, op, ": a GPU takes 1 to ", kMaxBranches,
               " branches, got ", count);
}

struct RunForward {
  static constexpr bool sums = true;
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

struct RunBackward {
  static constexpr bool sums = false;  // the stored x of a sum is taken as rows
  const Backward& p;
  const NormQuantBackwardArgs& args;
  bool aligned;

  template <Kind kKind, class S, class A>
  void operator()() const {
    choose_layout<kKind, BackwardLayout>(p.d, size_t(p.count), p.outer, aligned,
                                         [&]<class L>() { launch<L, kKind, S, A>(); });
  }
  template <class L, Kind kKind, class S, class A>
  void launch() const {
    using Sums = WeightSums<L, kKind>;
    const int threads = threads_for(ceil_div(p.d, L::width * L::held), L::threads);
    const int64_t blocks = persistent_blocks<backward<L, kKind, S, A>>(threads, p.n);
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
      backward<L, kKind, S, A><<<unsigned(blocks), threads, 0, stream()>>>(call);
      check_launch("norm_quant_backward");
    }
    if (wanted) finish_column_sums(columns, "norm_quant_backward");
  }
};

bool all_aligned(std::initializer_list<const void*> pointers) {
  for (const void* p : pointers)
    if (!is_aligned(p)) return false;
  return true;
}

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

void norm_quant_backward(const NormQuantBackwardArgs& a) {
  check_branches(a.branches.size(), "norm_quant_backward");
  if (a.d == 0) return;
  RowSourceArgs source = a.source;
  if (source.kind == Kind::sum) source.kind = Kind::rows;
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
             {}};
  bool aligned = all_aligned({source.a, source.b, source.weight, a.outer, a.incoming, a.da, a.db});
  for (size_t b = 0; b < a.branches.size(); ++b) {
    p.branches[b] = {static_cast<const float*>(a.branches[b].weight), a.branches[b].dout};
    aligned = aligned && all_aligned({a.branches[b].weight, a.branches[b].dout});
  }
  dispatch_source(source, a.dtype, "norm_quant_backward", RunBackward{p, a, aligned});
}

}  // namespace mmfree::cuda
