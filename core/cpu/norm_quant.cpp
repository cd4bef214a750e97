#include "core/ops/norm_quant.h"

#include "core/cpu/column_sums.h"
#include "core/cpu/vec.h"
#include "core/quantize.h"

namespace mmfree::cpu {
namespace {

constexpr int64_t kRowGrain = 16;

template <class T>
T rms_reciprocal(const T* x, int64_t d, double eps) {
  return T(1) / std::sqrt(lane_sum<T>(d, [x](int64_t k) { return x[k] * x[k]; }) / T(d) + T(eps));
}

template <class T>
void round_row(const NormQuantArgs::Branch& b, const T* v, int64_t row, int64_t d) {
  if (b.rounding == Rounding::int8) {
    const auto scale = activation_scale(lane_absmax<T>(d, [v](int64_t k) { return v[k]; }));
    int8_t* codes = static_cast<int8_t*>(b.out) + row * d;
    for (int64_t k = 0; k < d; ++k) codes[k] = activation_code(v[k], scale.inverse);
    static_cast<T*>(b.step)[row] = scale.step;
    return;
  }
  T* out = static_cast<T*>(b.out) + row * d;
  if (b.rounding == Rounding::bf16)
    for (int64_t k = 0; k < d; ++k) out[k] = T(float(bf16(float(v[k]))));
  else
    std::copy_n(v, d, out);
}

template <class T>
void forward(const NormQuantArgs& a) {
  const T* outer = static_cast<const T*>(a.outer);
  parallel_for(a.n, kRowGrain, [&](int64_t begin, int64_t end) {
    RowBuffer<T> u_row(a.d), v_row(a.d);
    T* v = v_row.data();
    for (int64_t n = begin; n < end; ++n) {
      const T* x = static_cast<const T*>(a.x) + n * a.d;
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

/// dx (+)= r (g − x̂ mean(x̂ g)) with x̂ = x r.
template <class T>
void rms_backward_row(const T* x, const T* g, T r, int64_t d, T* dx, double beta) {
  const T mean = lane_sum<T>(d, [=](int64_t k) { return x[k] * r * g[k]; }) / T(d);
  if (beta == 0)
    for (int64_t k = 0; k < d; ++k) dx[k] = r * (g[k] - x[k] * r * mean);
  else
    for (int64_t k = 0; k < d; ++k) dx[k] = T(beta) * dx[k] + r * (g[k] - x[k] * r * mean);
}

template <class T>
void backward(const NormQuantBackwardArgs& a) {
  const T* outer = static_cast<const T*>(a.outer);
  const int64_t d = a.d, branches = int64_t(a.branches.size());
  ColumnSums<T> sums(a.n, d, branches + 1);
  parallel_for(a.n, ColumnSums<T>::kRows, [&](int64_t begin, int64_t end) {
    const int64_t block = begin / ColumnSums<T>::kRows;
    RowBuffer<T> u_row(d), s_row(d), du_row(d);
    T *s = s_row.data(), *du = du_row.data();
    for (int64_t n = begin; n < end; ++n) {
      const T* x = static_cast<const T*>(a.x) + n * d;
      const T r1 = outer ? static_cast<const T*>(a.r1)[n] : T(1), r2 = static_cast<const T*>(a.r2)[n];
      const T* u = x;
      if (outer) {
        T* row = u_row.data();
        for (int64_t k = 0; k < d; ++k) row[k] = x[k] * r1 * outer[k];
        u = row;
      }
      std::fill_n(s, d, T(0));
      for (int64_t b = 0; b < branches; ++b) {
        const T* w = static_cast<const T*>(a.branches[size_t(b)].weight);
        const T* dv = static_cast<const T*>(a.branches[size_t(b)].dout) + n * d;
        T* dw = sums.partial(block, b);
        for (int64_t k = 0; k < d; ++k) {
          s[k] += w[k] * dv[k];
          dw[k] += dv[k] * (u[k] * r2);
        }
      }
      T* dx = a.dx ? static_cast<T*>(a.dx) + n * d : nullptr;
      if (!outer) {
        if (dx) rms_backward_row(u, s, r2, d, dx, a.beta_x);
        continue;
      }
      rms_backward_row(u, s, r2, d, du, 0);
      T* douter = sums.partial(block, branches);
      for (int64_t k = 0; k < d; ++k) {
        douter[k] += du[k] * (x[k] * r1);
        s[k] = du[k] * outer[k];
      }
      if (dx) rms_backward_row(x, s, r1, d, dx, a.beta_x);
    }
  });
  for (int64_t b = 0; b < branches; ++b)
    sums.finish(b, static_cast<T*>(a.branches[size_t(b)].dweight), a.branches[size_t(b)].beta);
  sums.finish(branches, static_cast<T*>(a.douter), a.beta_outer);
}

}  // namespace

void norm_quant(const NormQuantArgs& a) {
  dispatch_float(a.dtype, "norm_quant", [&]<class T>() { forward<T>(a); });
}

void norm_quant_backward(const NormQuantBackwardArgs& a) {
  dispatch_float(a.dtype, "norm_quant_backward", [&]<class T>() { backward<T>(a); });
}

}  // namespace mmfree::cpu
