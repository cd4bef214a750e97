#include "core/ops/norm_quant.h"

#include "core/cpu/column_sums.h"
#include "core/cpu/parts.h"
#include "core/cpu/rows.h"
#include "core/cpu/wide.h"
#include "core/quantize.h"

namespace mmfree::cpu {
namespace {

constexpr int64_t kRowGrain = 16;

/// Row n of a matrix of d columns, or null.
template <class T>
const T* row_of(const void* matrix, int64_t n, int64_t d) {
  return matrix ? static_cast<const T*>(matrix) + n * d : nullptr;
}
template <class T>
T* row_of(void* matrix, int64_t n, int64_t d) {
  return matrix ? static_cast<T*>(matrix) + n * d : nullptr;
}

/// Row n of x: a pointer into the source if x = a, else the row computed in `to`. Flat, because a loop that calls a
/// function is not vectorised.
template <class T>
[[gnu::flatten]] const T* source_row(const RowSourceArgs& s, int64_t n, int64_t d, T r0, T* to) {
  const T *a = row_of<T>(s.a, n, s.stride), *b = row_of<T>(s.b, n, s.stride);
  switch (s.kind) {
    case RowSource::rows:
      return a;
    case RowSource::sum:
      for (int64_t k = 0; k < d; ++k) to[k] = a[k] + b[k];
      return to;
    case RowSource::gate:
      gate_row(a, b, static_cast<const T*>(s.weight), r0, d, to);
      return to;
    case RowSource::glu:
      with_activation(s.f, [&]<Activation f>() { activation_row<f>(a, b, d, to); });
      return to;
    case RowSource::activation:
      with_activation(s.f, [&]<Activation f>() { activation_row<f>(a, static_cast<const T*>(nullptr), d, to); });
      return to;
  }
  throw Error(concat("norm_quant: the CPU has no source kind ", int(s.kind)));
}

/// u = x r1 ⊙ outer.
template <class T>
void outer_row(const T* x, T r1, const T* outer, int64_t d, T* u) {
  for (int64_t k = 0; k < d; ++k) u[k] = x[k] * r1 * outer[k];
}

/// v of a branch: u r2 ⊙ weight, computed in `to`; u itself for a branch without a weight.
template <class T>
const T* branch_row(const NormBranchArgs& b, const T* u, T r2, int64_t d, T* to) {
  const T* w = static_cast<const T*>(b.weight);
  if (!w) return u;
  for (int64_t k = 0; k < d; ++k) to[k] = u[k] * r2 * w[k];
  return to;
}

template <class T>
void round_row(const NormBranchArgs& b, const T* v, int64_t row, int64_t d) {
  T* out = row_of<T>(b.out, row, d);
  if (b.rounding == Rounding::int8) {
    const auto scale = activation_scale(lane_absmax<T>(d, [v](int64_t k) { return v[k]; }));
    if (!b.step) {
      for (int64_t k = 0; k < d; ++k) out[k] = T(activation_code(v[k], scale.inverse)) * scale.step;
      return;
    }
    int8_t* codes = static_cast<int8_t*>(b.out) + row * d;
    for (int64_t k = 0; k < d; ++k) codes[k] = activation_code(v[k], scale.inverse);
    static_cast<T*>(b.step)[row] = scale.step;
    return;
  }
  if (b.rounding == Rounding::bf16)
    for (int64_t k = 0; k < d; ++k) out[k] = T(float(bf16(float(v[k]))));
  else
    std::copy_n(v, d, out);
}

/// Row n of the forward pass; x_row, u_row and v_row are scratch.
template <class T>
void forward_row(const NormQuantArgs& a, int64_t n, T* x_row, T* u_row, T* v_row) {
  const auto statistic = [n](void* r, const T* of, int64_t d, double eps) {
    return r ? static_cast<T*>(r)[n] = rms_reciprocal(of, d, eps) : T(1);
  };
  const T* outer = static_cast<const T*>(a.outer);
  const T r0 = statistic(a.r0, row_of<T>(a.source.a, n, a.d), a.d, a.source.eps);
  const T* x = source_row(a.source, n, a.d, r0, a.x ? row_of<T>(a.x, n, a.d) : x_row);
  const T* u = x;
  if (outer) {
    outer_row(x, statistic(a.r1, x, a.d, a.eps_outer), outer, a.d, u_row);
    u = u_row;
  }
  const T r2 = statistic(a.r2, u, a.d, a.eps_inner);
  for (int b = 0; b < a.count; ++b) round_row(a.branches[b], branch_row(a.branches[b], u, r2, a.d, v_row), n, a.d);
}

#if MMFREE_WIDE_VECTORS
MMFREE_WIDE void wide_row(const NormQuantArgs& a, int64_t n, float* x_row, float* u_row, float* v_row) {
  forward_row<float>(a, n, x_row, u_row, v_row);
}
#endif

void any_row(const NormQuantArgs& a, int64_t n, float* x_row, float* u_row, float* v_row) {
#if MMFREE_WIDE_VECTORS
  if (has_wide_vectors()) return wide_row(a, n, x_row, u_row, v_row);
#endif
  forward_row<float>(a, n, x_row, u_row, v_row);
}
void any_row(const NormQuantArgs& a, int64_t n, double* x_row, double* u_row, double* v_row) {
  forward_row<double>(a, n, x_row, u_row, v_row);
}

template <class T>
void forward(const NormQuantArgs& a) {
  ThreadRows<T> scratch(a.d, 3);
  parallel_for(a.n, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) any_row(a, n, scratch.row(0), scratch.row(1), scratch.row(2));
  });
}

/// dx = r (g − x̂ mean(x̂ g)) with x̂ = x r.
template <class T>
void rms_backward_row(const T* x, const T* g, T r, int64_t d, T* dx) {
  const T mean = lane_sum<T>(d, [=](int64_t k) { return x[k] * r * g[k]; }) / T(d);
  for (int64_t k = 0; k < d; ++k) dx[k] = r * (g[k] - x[k] * r * mean);
}

/// Computes the gradients of the source from the gradient dx of row n. dw is the row block's partial sum for the gate
/// weight; s0 and s1 are scratch rows.
template <class T>
using SourceBackwardRow = void (*)(const NormQuantBackwardArgs&, int64_t n, T r0, const T* dx, T* dw, T* s0, T* s1);

template <class T>
SourceBackwardRow<T> source_backward_row(const RowSourceArgs& source) {
  using Args = const NormQuantBackwardArgs&;
  SourceBackwardRow<T> found = nullptr;
  switch (source.kind) {
    case RowSource::rows:
    case RowSource::sum:
      return [](Args a, int64_t n, T, const T* dx, T*, T*, T*) {
        const T* incoming = row_of<T>(a.incoming, n, a.d);
        if (T* da = row_of<T>(a.da, n, a.d))
          for (int64_t k = 0; k < a.d; ++k) da[k] = incoming ? incoming[k] + dx[k] : dx[k];
      };
    case RowSource::gate:
      return [](Args a, int64_t n, T r0, const T* dx, T* dw, T* s0, T* s1) {
        gate_backward_row(row_of<T>(a.source.a, n, a.d), row_of<T>(a.source.b, n, a.d),
                          static_cast<const T*>(a.source.weight), r0, dx, a.d, row_of<T>(a.da, n, a.d), 0,
                          row_of<T>(a.db, n, a.d), 0, dw, s0, s1);
      };
    case RowSource::glu:
      with_activation(source.f, [&]<Activation f>() {
        found = [](Args a, int64_t n, T, const T* dx, T*, T* s0, T* s1) {
          const int64_t stride = a.source.stride;
          T *da = row_of<T>(a.da, n, stride), *db = row_of<T>(a.db, n, stride);
          activation_backward_row<f>(row_of<T>(a.source.a, n, stride), row_of<T>(a.source.b, n, stride), dx, a.d,
                                     da ? da : s0, db ? db : s1);
        };
      });
      return found;
    case RowSource::activation:
      with_activation(source.f, [&]<Activation f>() {
        found = [](Args a, int64_t n, T, const T* dx, T*, T*, T*) {
          const T *x = row_of<T>(a.source.a, n, a.d), *none = nullptr;
          if (T* da = row_of<T>(a.da, n, a.d))
            activation_backward_row<f>(x, none, dx, a.d, da, static_cast<T*>(nullptr));
        };
      });
      return found;
  }
  throw Error(concat("norm_quant_backward: the CPU has no source kind ", int(source.kind)));
}

template <class T>
class Backward;
void any_row(Backward<float>& pass, int64_t n, int64_t block);
void any_row(Backward<double>& pass, int64_t n, int64_t block);

/// The backward pass, row by row. Column sums are, in this order: one per branch for its weight, one for `outer`, one
/// for the gate weight.
template <class T>
class Backward {
 public:
  explicit Backward(const NormQuantBackwardArgs& a)
      : a_(a),
        d_(a.d),
        outer_(static_cast<const T*>(a.outer)),
        source_backward_(source_backward_row<T>(a.source)),
        sums_(a.n, a.d, a.count + 2),
        scratch_(a.d, kScratch) {
    for (int b = 0; b < a.count; ++b) bare_ |= !a.branches[b].weight;
  }

  void run() {
    parallel_for(a_.n, ColumnSums<T>::kRows, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) any_row(*this, n, begin / ColumnSums<T>::kRows);
    });
    for (int b = 0; b < a_.count; ++b) sums_.finish(b, static_cast<T*>(a_.branches[b].dweight), a_.branches[b].beta);
    sums_.finish(a_.count, static_cast<T*>(a_.douter), a_.beta_outer);
    sums_.finish(a_.count + 1, static_cast<T*>(a_.dweight), a_.beta_weight);
  }

  void row(int64_t n, int64_t block) {
    const auto statistic = [n](const void* r) { return r ? static_cast<const T*>(r)[n] : T(1); };
    const T r0 = statistic(a_.r0), r1 = statistic(a_.r1);
    const T* x = source_row(a_.source, n, d_, r0, scratch_.row(kX));
    const T *u = x, *dx = scratch_.row(kDu);
    if (outer_) {
      outer_row(x, r1, outer_, d_, scratch_.row(kU));
      u = scratch_.row(kU);
    }
    branches(u, statistic(a_.r2), n, block, scratch_.row(kDu));
    if (outer_) {
      const T* du = dx;
      T *douter = sums_.partial(block, a_.count), *g = scratch_.row(kS);
      for (int64_t k = 0; k < d_; ++k) {
        douter[k] += du[k] * (x[k] * r1);
        g[k] = du[k] * outer_[k];
      }
      rms_backward_row(x, g, r1, d_, scratch_.row(kDx));
      dx = scratch_.row(kDx);
    }
    source_backward_(a_, n, r0, dx, sums_.partial(block, a_.count + 1), scratch_.row(kFirst), scratch_.row(kSecond));
  }

 private:
  enum Scratch { kX, kU, kV, kS, kBare, kDu, kDx, kFirst, kSecond, kScratch };

  /// du from the gradients of all branches. `s` sums those of branches with a weight, `bare` those without.
  void branches(const T* u, T r2, int64_t n, int64_t block, T* du) {
    T *s = scratch_.row(kS), *bare = scratch_.row(kBare);
    std::fill_n(s, d_, T(0));
    if (bare_) std::fill_n(bare, d_, T(0));
    for (int b = 0; b < a_.count; ++b) {
      const NormBranchArgs& branch = a_.branches[b];
      const T *w = static_cast<const T*>(branch.weight), *dv = row_of<T>(branch.dout, n, d_);
      T* dw = sums_.partial(block, b);
      if (w)
        for (int64_t k = 0; k < d_; ++k) {
          s[k] += w[k] * dv[k];
          dw[k] += dv[k] * (u[k] * r2);
        }
      else
        for (int64_t k = 0; k < d_; ++k) bare[k] += dv[k];
      if (branch.out) round_row(branch, branch_row(branch, u, r2, d_, scratch_.row(kV)), n, d_);
    }
    if (a_.r2)
      rms_backward_row(u, s, r2, d_, du);
    else
      std::copy_n(s, d_, du);
    if (bare_)
      for (int64_t k = 0; k < d_; ++k) du[k] += bare[k];
  }

  const NormQuantBackwardArgs& a_;
  int64_t d_;
  const T* outer_;
  SourceBackwardRow<T> source_backward_;
  ColumnSums<T> sums_;
  ThreadRows<T> scratch_;
  bool bare_ = false;
};

#if MMFREE_WIDE_VECTORS
MMFREE_WIDE void wide_row(Backward<float>& pass, int64_t n, int64_t block) { pass.row(n, block); }
#endif

void any_row(Backward<float>& pass, int64_t n, int64_t block) {
#if MMFREE_WIDE_VECTORS
  if (has_wide_vectors()) return wide_row(pass, n, block);
#endif
  pass.row(n, block);
}
void any_row(Backward<double>& pass, int64_t n, int64_t block) { pass.row(n, block); }

}  // namespace

void norm_quant(const NormQuantArgs& a) {
  dispatch_float(a.dtype, "norm_quant", [&]<class T>() { forward<T>(a); });
}

void norm_quant_row(const NormQuantArgs& a, float* scratch) {
  any_row(a, 0, scratch, scratch + a.d, scratch + 2 * a.d);
}

void norm_quant_backward(const NormQuantBackwardArgs& a) {
  dispatch_float(a.dtype, "norm_quant_backward", [&]<class T>() { Backward<T>(a).run(); });
}

}  // namespace mmfree::cpu
