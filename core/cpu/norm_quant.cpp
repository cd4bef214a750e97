#include "core/ops/norm_quant.h"

#include "core/cpu/column_sums.h"
#include "core/cpu/rows.h"
#include "core/quantize.h"

namespace mmfree::cpu {
namespace {

constexpr int64_t kRowGrain = 16;

/// Row n of the source: in place where it has no work to do, else computed into `to`.
template <class T>
const T* source_row(const RowSourceArgs& s, int64_t n, int64_t d, T r0, T* to) {
  const T* a = static_cast<const T*>(s.a) + n * d;
  const T* b = s.b ? static_cast<const T*>(s.b) + n * d : nullptr;
  switch (s.kind) {
    case RowSource::rows:
      return a;
    case RowSource::sum:
      for (int64_t k = 0; k < d; ++k) to[k] = a[k] + b[k];
      return to;
    case RowSource::gate:
      gate_row(a, b, static_cast<const T*>(s.weight), r0, d, to);
      return to;
    case RowSource::swiglu:
      swiglu_row(a + n * d, a + n * d + d, d, to);
      return to;
  }
  return nullptr;
}

template <class T>
void round_row(const NormQuantArgs::Branch& b, const T* v, int64_t row, int64_t d) {
  T* out = static_cast<T*>(b.out) + row * d;
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

template <class T>
void forward(const NormQuantArgs& a) {
  const T* outer = static_cast<const T*>(a.outer);
  parallel_for(a.n, kRowGrain, [&](int64_t begin, int64_t end) {
    RowBuffer<T> x_row(a.d), u_row(a.d), v_row(a.d);
    T* v = v_row.data();
    for (int64_t n = begin; n < end; ++n) {
      const T r0 = a.r0 ? static_cast<T*>(a.r0)[n] =
                              rms_reciprocal(static_cast<const T*>(a.source.a) + n * a.d, a.d, a.source.eps)
                        : T(1);
      const T* x = source_row(a.source, n, a.d, r0, a.x ? static_cast<T*>(a.x) + n * a.d : x_row.data());
      const T* u = x;
      if (outer) {
        const T r1 = static_cast<T*>(a.r1)[n] = rms_reciprocal(x, a.d, a.eps_outer);
        T* row = u_row.data();
        for (int64_t k = 0; k < a.d; ++k) row[k] = x[k] * r1 * outer[k];
        u = row;
      }
      const T r2 = static_cast<T*>(a.r2)[n] = rms_reciprocal(u, a.d, a.eps_inner);
      for (const auto& b : a.branches) {
        const T* w = static_cast<const T*>(b.weight);
        for (int64_t k = 0; k < a.d; ++k) v[k] = u[k] * r2 * w[k];
        round_row(b, v, n, a.d);
      }
    }
  });
}

/// dx = r (g − x̂ mean(x̂ g)) with x̂ = x r.
template <class T>
void rms_backward_row(const T* x, const T* g, T r, int64_t d, T* dx) {
  const T mean = lane_sum<T>(d, [=](int64_t k) { return x[k] * r * g[k]; }) / T(d);
  for (int64_t k = 0; k < d; ++k) dx[k] = r * (g[k] - x[k] * r * mean);
}

/// Scratch rows of one task of the backward pass.
template <class T>
struct BackwardRows {
  explicit BackwardRows(int64_t d) : x(d), u(d), v(d), s(d), du(d), dx(d), gate(d), up(d) {}
  RowBuffer<T> x, u, v, s, du, dx, gate, up;
};

/// From the gradient dx of the row to those of the source.
template <class T>
void source_backward_row(const NormQuantBackwardArgs& a, int64_t n, T r0, const T* dx, T* dw, BackwardRows<T>& rows) {
  const int64_t d = a.d;
  const T* x = static_cast<const T*>(a.source.a) + n * d;
  T* da = a.da ? static_cast<T*>(a.da) + n * d : nullptr;
  if (a.source.kind == RowSource::gate) {
    gate_backward_row(x, static_cast<const T*>(a.source.b) + n * d, static_cast<const T*>(a.source.weight), r0, dx, d,
                      da, 0, a.db ? static_cast<T*>(a.db) + n * d : nullptr, 0, dw, rows.gate.data(), rows.up.data());
  } else if (a.source.kind == RowSource::swiglu) {
    if (da) swiglu_backward_row(x + n * d, x + n * d + d, dx, d, da + n * d, da + n * d + d);
  } else if (da) {
    const T* incoming = a.incoming ? static_cast<const T*>(a.incoming) + n * d : nullptr;
    for (int64_t k = 0; k < d; ++k) da[k] = incoming ? incoming[k] + dx[k] : dx[k];
  }
}

template <class T>
void backward(const NormQuantBackwardArgs& a) {
  const T* outer = static_cast<const T*>(a.outer);
  const int64_t d = a.d, branches = int64_t(a.branches.size());
  ColumnSums<T> sums(a.n, d, branches + 2);
  parallel_for(a.n, ColumnSums<T>::kRows, [&](int64_t begin, int64_t end) {
    const int64_t block = begin / ColumnSums<T>::kRows;
    BackwardRows<T> rows(d);
    T *v = rows.v.data(), *s = rows.s.data(), *du = rows.du.data(), *dx = rows.dx.data();
    for (int64_t n = begin; n < end; ++n) {
      const T r0 = a.r0 ? static_cast<const T*>(a.r0)[n] : T(1), r2 = static_cast<const T*>(a.r2)[n];
      const T r1 = outer ? static_cast<const T*>(a.r1)[n] : T(1);
      const T* x = source_row(a.source, n, d, r0, rows.x.data());
      const T* u = x;
      if (outer) {
        T* row = rows.u.data();
        for (int64_t k = 0; k < d; ++k) row[k] = x[k] * r1 * outer[k];
        u = row;
      }
      std::fill_n(s, d, T(0));
      for (int64_t b = 0; b < branches; ++b) {
        const NormQuantBackwardArgs::Branch& branch = a.branches[size_t(b)];
        const T* w = static_cast<const T*>(branch.weight);
        const T* dv = static_cast<const T*>(branch.dout) + n * d;
        T* dw = sums.partial(block, b);
        for (int64_t k = 0; k < d; ++k) {
          s[k] += w[k] * dv[k];
          dw[k] += dv[k] * (u[k] * r2);
        }
        if (!branch.u) continue;
        for (int64_t k = 0; k < d; ++k) v[k] = u[k] * r2 * w[k];
        round_row({w, branch.rounding, branch.u, nullptr}, v, n, d);
      }
      if (outer) {
        rms_backward_row(u, s, r2, d, du);
        T* douter = sums.partial(block, branches);
        for (int64_t k = 0; k < d; ++k) {
          douter[k] += du[k] * (x[k] * r1);
          s[k] = du[k] * outer[k];
        }
        rms_backward_row(x, s, r1, d, dx);
      } else {
        rms_backward_row(u, s, r2, d, dx);
      }
      source_backward_row(a, n, r0, dx, sums.partial(block, branches + 1), rows);
    }
  });
  for (int64_t b = 0; b < branches; ++b)
    sums.finish(b, static_cast<T*>(a.branches[size_t(b)].dweight), a.branches[size_t(b)].beta);
  sums.finish(branches, static_cast<T*>(a.douter), a.beta_outer);
  sums.finish(branches + 1, static_cast<T*>(a.dweight), a.beta_weight);
}

}  // namespace

void norm_quant(const NormQuantArgs& a) {
  dispatch_float(a.dtype, "norm_quant", [&]<class T>() { forward<T>(a); });
}

void norm_quant_backward(const NormQuantBackwardArgs& a) {
  dispatch_float(a.dtype, "norm_quant_backward", [&]<class T>() { backward<T>(a); });
}

}  // namespace mmfree::cpu
