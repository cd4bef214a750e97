#include "core/ops/mlgru_scan.h"

#include <algorithm>

#include "core/cpu/parts.h"
#include "core/cpu/vec.h"
#include "core/cpu/wide.h"
#include "core/parallel.h"

namespace mmfree::cpu {
namespace {

/// Channels per task. A task runs through all time steps; the state of 64 channels, a few cache lines, stays close.
constexpr int64_t kStripe = 64;

int64_t stripes_of(int64_t d) { return (d + kStripe - 1) / kStripe; }

/// Calls body(b, first channel, channels) for the stripes [begin, end) of all sequences.
template <class Body>
void some_stripes(int64_t begin, int64_t end, int64_t d, Body&& body) {
  const int64_t stripes = stripes_of(d);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = i % stripes * kStripe;
    body(i / stripes, first, std::min(kStripe, d - first));
  }
}

/// The same for every stripe, in parallel.
template <class Body>
void for_stripes(int64_t b, int64_t d, Body&& body) {
  parallel_for(b * stripes_of(d), 1, [&](int64_t begin, int64_t end) { some_stripes(begin, end, d, body); });
}

template <class T>
void load(T* to, const void* from, int64_t offset, int64_t n) {
  if (from)
    std::copy_n(static_cast<const T*>(from) + offset, n, to);
  else
    std::fill_n(to, n, T(0));
}

/// Channels [first, first + n) of sequence b.
template <class T>
void forward_stripe(const MlgruScanArgs& g, int64_t b, int64_t first, int64_t n) {
  T state[kStripe], bound[kStripe];
  load(state, g.h0, b * g.d + first, n);
  load(bound, g.gamma, first, n);
  for (int64_t t = 0; t < g.t; ++t) {
    const int64_t at = (b * g.t + t) * g.d + first;
    const T* z = static_cast<const T*>(g.z) + at;
    const T* a = static_cast<const T*>(g.a) + at;
    T* h = static_cast<T*>(g.h) + at;
    if (g.starts && g.starts[b * g.t + t]) std::fill_n(state, n, T(0));
#pragma omp simd
    for (int64_t k = 0; k < n; ++k) {
      const T f = bound[k] + (T(1) - bound[k]) * sigmoid(z[k]);
      state[k] = f * state[k] + silu(a[k], sigmoid(a[k])) * (T(1) - f);
      h[k] = state[k];
    }
  }
  if (g.last) std::copy_n(state, n, static_cast<T*>(g.last) + b * g.d + first);
}

#if MMFREE_WIDE_VECTORS
MMFREE_WIDE void wide_stripe(const MlgruScanArgs& g, int64_t b, int64_t first, int64_t n) {
  forward_stripe<float>(g, b, first, n);
}
#endif

template <class T>
void any_stripe(const MlgruScanArgs& g, int64_t b, int64_t first, int64_t n) {
#if MMFREE_WIDE_VECTORS
  if constexpr (sizeof(T) == sizeof(float))
    if (has_wide_vectors()) return wide_stripe(g, b, first, n);
#endif
  forward_stripe<T>(g, b, first, n);
}

template <class T>
void forward(const MlgruScanArgs& g) {
  for_stripes(g.b, g.d, [&](int64_t b, int64_t first, int64_t n) { any_stripe<T>(g, b, first, n); });
}

template <class T>
void backward(const MlgruScanBackwardArgs& g) {
  RowBuffer<T> bound_sums(g.b * g.d);
  for_stripes(g.b, g.d, [&](int64_t b, int64_t first, int64_t n) {
    const T zeros[kStripe] = {};
    T carry[kStripe] = {}, dgamma[kStripe] = {}, bound[kStripe], first_state[kStripe];
    load(bound, g.gamma, first, n);
    load(first_state, g.h0, b * g.d + first, n);
    for (int64_t t = g.t - 1; t >= 0; --t) {
      const int64_t at = (b * g.t + t) * g.d + first;
      const T* z = static_cast<const T*>(g.z) + at;
      const T* a = static_cast<const T*>(g.a) + at;
      const T* dh = static_cast<const T*>(g.dh) + at;
      const bool start = g.starts && g.starts[b * g.t + t];
      const T* before = start ? zeros : t ? static_cast<const T*>(g.h) + at - g.d : first_state;
      T* dz = static_cast<T*>(g.dz) + at;
      T* da = static_cast<T*>(g.da) + at;
#pragma omp simd
      for (int64_t k = 0; k < n; ++k) {
        const T s = sigmoid(z[k]), sa = sigmoid(a[k]);
        const T f = bound[k] + (T(1) - bound[k]) * s;
        const T grad = carry[k] + dh[k];
        const T df = grad * (before[k] - silu(a[k], sa));
        da[k] = grad * (T(1) - f) * silu_slope(a[k], sa);
        dz[k] = df * (T(1) - bound[k]) * (s * (T(1) - s));
        dgamma[k] += df * (T(1) - s);
        carry[k] = grad * f;
      }
      if (start) std::fill_n(carry, n, T(0));
    }
    std::copy_n(dgamma, n, bound_sums.data() + b * g.d + first);
  });
  if (!g.dgamma) return;
  T* out = static_cast<T*>(g.dgamma);
  for (int64_t k = 0; k < g.d; ++k) {
    T sum = g.beta_gamma == 0 ? T(0) : T(g.beta_gamma) * out[k];
    for (int64_t b = 0; b < g.b; ++b) sum += bound_sums[size_t(b * g.d + k)];
    out[k] = sum;
  }
}

}  // namespace

void mlgru_scan(const MlgruScanArgs& g) {
  dispatch_float(g.dtype, "mlgru_scan", [&]<class T>() { forward<T>(g); });
}

int64_t mlgru_scan_stripes(const MlgruScanArgs& g) { return g.b * stripes_of(g.d); }

void mlgru_scan_part(const MlgruScanArgs& g, int64_t begin, int64_t end) {
  some_stripes(begin, end, g.d, [&](int64_t b, int64_t first, int64_t n) { any_stripe<float>(g, b, first, n); });
}

void mlgru_scan_backward(const MlgruScanBackwardArgs& g) {
  dispatch_float(g.dtype, "mlgru_scan_backward", [&]<class T>() { backward<T>(g); });
}

}  // namespace mmfree::cpu
