#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "core/ops/elementwise.h"
#include "core/tensor.h"

namespace mmfree {

inline Tensor as_f64(const Tensor& t) {
  if (t.dtype() == DType::f64) return t;
  Tensor out(t.shape(), DType::f64);
  cast(t, out);
  return out;
}

/// max |a − b| / max |b|: the largest error relative to the largest expected value; NaN if any difference is.
inline double relative_error(const Tensor& a, const Tensor& b) {
  const Tensor x = as_f64(a), y = as_f64(b);
  double error = 0, size = 0;
  for (int64_t i = 0; i < y.size(); ++i) {
    const double e = std::abs(x.data<double>()[i] - y.data<double>()[i]);
    if (std::isnan(e)) return e;
    error = std::max(error, e);
    size = std::max(size, std::abs(y.data<double>()[i]));
  }
  return error / (size + 1e-300);
}

/// Σ x²
inline double sum_of_squares(const Tensor& x) {
  Tensor out({1}, DType::f64);
  sum_of_squares(x, out);
  return *out.data<double>();
}

/// ‖a − b‖ / ‖b‖.
inline double norm_error(const Tensor& a, const Tensor& b) {
  const Tensor x = as_f64(a), y = as_f64(b);
  double error = 0, size = 0;
  for (int64_t i = 0; i < y.size(); ++i) {
    const double e = x.data<double>()[i] - y.data<double>()[i];
    error += e * e;
    size += y.data<double>()[i] * y.data<double>()[i];
  }
  return std::sqrt(error / (size + 1e-300));
}

/// Same shape, dtype and bits.
inline bool same_bits(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && a.dtype() == b.dtype() && std::memcmp(a.raw(), b.raw(), size_t(a.bytes())) == 0;
}

}  // namespace mmfree
