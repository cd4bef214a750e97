#pragma once
#include <cmath>
#include <cstdint>

namespace mmfree::cpu {

/// Σ |w| in f64: eight interleaved partial sums, so that the compiler vectorises the loop, added in a fixed order.
template <class T>
double sum_abs(const T* w, int64_t n) {
  double lanes[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int l = 0; l < 8; ++l) lanes[l] += std::fabs(double(w[i + l]));
  for (int l = 0; i + l < n; ++l) lanes[l] += std::fabs(double(w[i + l]));
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

}  // namespace mmfree::cpu
