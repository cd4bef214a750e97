#include "core/ops/gate_norm.h"

#include "core/cpu/column_sums.h"
#include "core/cpu/vec.h"

namespace mmfree::cpu {
namespace {

template <class T>
void forward(const GateNormArgs& g) {
  const T* w = static_cast<const T*>(g.weight);
  parallel_for(g.n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const T* a = static_cast<const T*>(g.a) + n * g.d;
      const T* b = static_cast<const T*>(g.b) + n * g.d;
      T* y = static_cast<T*>(g.y) + n * g.d;
      if (!w) {
        for (int64_t k = 0; k < g.d; ++k) y[k] = a[k] * sigmoid(b[k]);
        continue;
      }
      const T r = T(1) / std::sqrt(lane_sum<T>(g.d, [a](int64_t k) { return a[k] * a[k]; }) / T(g.d) + T(g.eps));
      static_cast<T*>(g.r)[n] = r;
      for (int64_t k = 0; k < g.d; ++k) y[k] = a[k] * r * w[k] * silu(b[k], sigmoid(b[k]));
    }
  });
}

/// dst = beta * dst + value(k); nothing when dst is null.
template <class T, class Value>
void blend(T* dst, double beta, int64_t d, Value&& value) {
  if (!dst) return;
  if (beta == 0)
    for (int64_t k = 0; k < d; ++k) dst[k] = value(k);
  else
    for (int64_t k = 0; k < d; ++k) dst[k] = T(beta) * dst[k] + value(k);
}

template <class T>
void backward(const GateNormBackwardArgs& g) {
  const T* w = static_cast<const T*>(g.weight);
  const int64_t d = g.d;
  ColumnSums<T> sums(g.n, d, 1);
  parallel_for(g.n, ColumnSums<T>::kRows, [&](int64_t begin, int64_t end) {
    RowBuffer<T> gate_row(d), normed_row(d);
    T *gate = gate_row.data(), *up = normed_row.data(), *dw = sums.partial(begin / ColumnSums<T>::kRows, 0);
    for (int64_t n = begin; n < end; ++n) {
      const T* a = static_cast<const T*>(g.a) + n * d;
      const T* b = static_cast<const T*>(g.b) + n * d;
      const T* dy = static_cast<const T*>(g.dy) + n * d;
      T* da = g.da ? static_cast<T*>(g.da) + n * d : nullptr;
      T* db = g.db ? static_cast<T*>(g.db) + n * d : nullptr;
      for (int64_t k = 0; k < d; ++k) gate[k] = sigmoid(b[k]);
      if (!w) {
        blend(da, g.beta_a, d, [=](int64_t k) { return dy[k] * gate[k]; });
        blend(db, g.beta_b, d, [=](int64_t k) { return dy[k] * a[k] * gate[k] * (T(1) - gate[k]); });
        continue;
      }
      const T r = static_cast<const T*>(g.r)[n];
      blend(db, g.beta_b, d, [=](int64_t k) { return dy[k] * (a[k] * r * w[k]) * silu_slope(b[k], gate[k]); });
      for (int64_t k = 0; k < d; ++k) {
        const T t = dy[k] * silu(b[k], gate[k]);
        dw[k] += t * (a[k] * r);
        up[k] = t * w[k];
      }
      const T mean = lane_sum<T>(d, [=](int64_t k) { return a[k] * r * up[k]; }) / T(d);
      blend(da, g.beta_a, d, [=](int64_t k) { return r * (up[k] - a[k] * r * mean); });
    }
  });
  sums.finish(0, static_cast<T*>(g.dweight), g.beta_weight);
}

}  // namespace

void gate_norm(const GateNormArgs& g) {
  dispatch_float(g.dtype, "gate_norm", [&]<class T>() { forward<T>(g); });
}

void gate_norm_backward(const GateNormBackwardArgs& g) {
  dispatch_float(g.dtype, "gate_norm_backward", [&]<class T>() { backward<T>(g); });
}

}  // namespace mmfree::cpu
