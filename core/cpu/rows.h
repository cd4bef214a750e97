#pragma once
#include <cmath>

#include "core/cpu/vec.h"
#include "core/parallel.h"

/// Functions of one row, shared by the kernels that fuse them.
namespace mmfree::cpu {

/// Scratch rows of d elements for each thread of a parallel_for that this thread starts.
template <class T>
class ThreadRows {
 public:
  ThreadRows(int64_t d, int count)
      : d_((d + kLanes - 1) / kLanes * kLanes),
        count_(count),
        rows_(Tensor::zeros({threads::limit() * count * d_}, dtype_of<T>())),
        data_(rows_.template mut<T>()) {}
  T* row(int i) { return data_ + (threads::index() * count_ + i) * d_; }

 private:
  int64_t d_;
  int count_;
  Tensor rows_;
  T* data_;
};

/// rstd of a row: 1 / sqrt(mean x² + eps). If the squares overflow it is NaN: 0 would turn the row into zeros silently.
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

/// dst[k] = beta * dst[k] + value(k); does nothing if dst is null.
template <class T, class Value>
inline void blend(T* dst, double beta, int64_t d, Value&& value) {
  if (!dst) return;
  if (beta == 0)
    for (int64_t k = 0; k < d; ++k) dst[k] = value(k);
  else
    for (int64_t k = 0; k < d; ++k) dst[k] = T(beta) * dst[k] + value(k);
}

/// Backward of gate_row. Adds the row's term to dw, a partial sum over rows. `gate` and `up` are scratch rows.
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

/// y = f(a) ⊙ up, or f(a) where up is null.
template <Activation f, class T>
inline void activation_row(const T* a, const T* up, int64_t d, T* y) {
  if (up)
    for (int64_t k = 0; k < d; ++k) y[k] = activated<f, Maths>(a[k]).value * up[k];
  else
    for (int64_t k = 0; k < d; ++k) y[k] = activated<f, Maths>(a[k]).value;
}
template <Activation f, class T>
inline void activation_backward_row(const T* a, const T* up, const T* dy, int64_t d, T* da, T* dup) {
  if (!up) {
    for (int64_t k = 0; k < d; ++k) da[k] = dy[k] * activated<f, Maths>(a[k]).slope;
    return;
  }
  for (int64_t k = 0; k < d; ++k) {
    const Activated<T> at = activated<f, Maths>(a[k]);
    da[k] = dy[k] * up[k] * at.slope;
    dup[k] = dy[k] * at.value;
  }
}

}  // namespace mmfree::cpu
