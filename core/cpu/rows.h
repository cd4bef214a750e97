#pragma once
#include <cmath>

#include "core/cpu/vec.h"

/// The maths of one row, shared by the kernels that fuse it.
namespace mmfree::cpu {

/// 1 / sqrt(mean x² + eps); NaN, not 0, where the squares overflow, so that such a row does not pass as zeros.
template <class T>
inline T rms_reciprocal(const T* x, int64_t d, double eps) {
  const T squares = lane_sum<T>(d, [x](int64_t k) { return x[k] * x[k]; });
  return T(1) / std::sqrt(squares / T(d) + T(eps)) + (squares - squares);
}

/// y = (a · r ⊙ w) ⊙ SiLU(b), or a ⊙ σ(b) where w is null.
template <class T>
inline void gate_row(const T* a, const T* b, const T* w, T r, int64_t d, T* y) {
  if (!w)
    for (int64_t k = 0; k < d; ++k) y[k] = a[k] * sigmoid(b[k]);
  else
    for (int64_t k = 0; k < d; ++k) y[k] = a[k] * r * w[k] * silu(b[k], sigmoid(b[k]));
}

/// dst = beta * dst + value(k); nothing when dst is null.
template <class T, class Value>
inline void blend(T* dst, double beta, int64_t d, Value&& value) {
  if (!dst) return;
  if (beta == 0)
    for (int64_t k = 0; k < d; ++k) dst[k] = value(k);
  else
    for (int64_t k = 0; k < d; ++k) dst[k] = T(beta) * dst[k] + value(k);
}

/// Backward of gate_row; dw is added to (it is a partial sum over rows). `gate` and `up` are scratch rows.
template <class T>
inline void gate_backward_row(const T* a, const T* b, const T* w, T r, const T* dy, int64_t d, T* da, double beta_a,
                              T* db, double beta_b, T* dw, T* gate, T* up) {
  for (int64_t k = 0; k < d; ++k) gate[k] = sigmoid(b[k]);
  if (!w) {
    blend(da, beta_a, d, [=](int64_t k) { return dy[k] * gate[k]; });
    blend(db, beta_b, d, [=](int64_t k) { return dy[k] * a[k] * gate[k] * (T(1) - gate[k]); });
    return;
  }
  blend(db, beta_b, d, [=](int64_t k) { return dy[k] * (a[k] * r * w[k]) * silu_slope(b[k], gate[k]); });
  for (int64_t k = 0; k < d; ++k) {
    const T t = dy[k] * silu(b[k], gate[k]);
    dw[k] += t * (a[k] * r);
    up[k] = t * w[k];
  }
  const T mean = lane_sum<T>(d, [=](int64_t k) { return a[k] * r * up[k]; }) / T(d);
  blend(da, beta_a, d, [=](int64_t k) { return r * (up[k] - a[k] * r * mean); });
}

/// y = SiLU(gate) ⊙ up, and its derivative by both.
template <class T>
inline void swiglu_row(const T* gate, const T* up, int64_t d, T* y) {
  for (int64_t k = 0; k < d; ++k) y[k] = silu(gate[k], sigmoid(gate[k])) * up[k];
}
template <class T>
inline void swiglu_backward_row(const T* gate, const T* up, const T* dy, int64_t d, T* dgate, T* dup) {
  for (int64_t k = 0; k < d; ++k) {
    const T s = sigmoid(gate[k]);
    dgate[k] = dy[k] * up[k] * silu_slope(gate[k], s);
    dup[k] = dy[k] * silu(gate[k], s);
  }
}

}  // namespace mmfree::cpu
