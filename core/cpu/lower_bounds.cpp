#include "core/ops/lower_bounds.h"

#include <algorithm>

#include "core/cpu/vec.h"

namespace mmfree::cpu {
namespace {

/// Softmax over the layers of channel k, into p[0..layers).
template <class T>
void channel_softmax(const T* lambda, int64_t layers, int64_t d, int64_t k, T* p) {
  T largest = lambda[k], sum = 0;
  for (int64_t l = 1; l < layers; ++l) largest = std::max(largest, lambda[l * d + k]);
  for (int64_t l = 0; l < layers; ++l) sum += p[l] = std::exp(lambda[l * d + k] - largest);
  for (int64_t l = 0; l < layers; ++l) p[l] /= sum;
}

}  // namespace

void lower_bounds(const LowerBoundsArgs& g) {
  dispatch_float(g.dtype, "lower_bounds", [&]<class T>() {
    RowBuffer<T> p(g.l);
    T* gamma = static_cast<T*>(g.out);
    for (int64_t k = 0; k < g.d; ++k) {
      channel_softmax(static_cast<const T*>(g.lambda), g.l, g.d, k, p.data());
      T sum = 0;
      for (int64_t l = 0; l < g.l; ++l) gamma[l * g.d + k] = sum += l ? p[size_t(l)] : T(0);
    }
  });
}

void lower_bounds_backward(const LowerBoundsArgs& g) {
  dispatch_float(g.dtype, "lower_bounds_backward", [&]<class T>() {
    RowBuffer<T> p(g.l), dp(g.l);
    const T* dgamma = static_cast<const T*>(g.dgamma);
    T* dlambda = static_cast<T*>(g.out);
    for (int64_t k = 0; k < g.d; ++k) {
      channel_softmax(static_cast<const T*>(g.lambda), g.l, g.d, k, p.data());
      T sum = 0, mean = 0;
      for (int64_t l = g.l - 1; l >= 0; --l) {
        sum += dgamma[l * g.d + k];
        dp[size_t(l)] = l ? sum : T(0);
        mean += p[size_t(l)] * dp[size_t(l)];
      }
      for (int64_t l = 0; l < g.l; ++l) {
        T& out = dlambda[l * g.d + k];
        out = (g.beta == 0 ? T(0) : T(g.beta) * out) + p[size_t(l)] * (dp[size_t(l)] - mean);
      }
    }
  });
}

}  // namespace mmfree::cpu
