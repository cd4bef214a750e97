#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "core/activation.h"

/// Building blocks of the CPU kernels. Sums have a fixed number of lanes: the compiler vectorises them, and the bits
/// depend on the data alone, not on alignment, row or vector width.
namespace mmfree::cpu {

inline constexpr int kLanes = 16;

/// One row of scratch.
template <class T>
struct RowBuffer : std::vector<T> {
  explicit RowBuffer(int64_t n) : std::vector<T>(static_cast<size_t>(n)) {}
};

/// Sum of term(i) over [0, n): 16 interleaved lanes, added pairwise at the end.
template <class T, class Term>
inline T lane_sum(int64_t n, Term&& term) {
  T lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) lanes[l] += term(i + l);
  for (int l = 0; i + l < n; ++l) lanes[l] += term(i + l);
  for (int width = kLanes / 2; width; width /= 2)
    for (int l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  return lanes[0];
}

/// Largest |term(i)| over [0, n); 0 if n == 0, NaN if any term is. The order does not matter, so there are four vectors
/// of lanes, which do not wait for each other.
template <class T, class Term>
inline T lane_absmax(int64_t n, Term&& term) {
  T a[kLanes] = {}, b[kLanes] = {}, c[kLanes] = {}, d[kLanes] = {};
  const auto larger = [](T x, T y) { return (x > y) | (x != x) ? x : y; };  // a NaN stays: it is in y, or comes as x
  const auto add = [&](T(&lanes)[kLanes], int64_t i) {
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) lanes[l] = larger(std::abs(term(i + l)), lanes[l]);
  };
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
    add(a, i), add(b, i + kLanes), add(c, i + 2 * kLanes), add(d, i + 3 * kLanes);
  for (; i + kLanes <= n; i += kLanes) add(a, i);
  for (int l = 0; i + l < n; ++l) a[l] = larger(std::abs(term(i + l)), a[l]);
  T largest = 0;
  for (int l = 0; l < kLanes; ++l)
    for (const T lane : {a[l], b[l], c[l], d[l]}) largest = larger(lane, largest);
  return largest;
}

inline double exp_of(double x) { return std::exp(x); }

/// e^x in f32 without branches: relative error below 2e-7 for -87 <= x <= 88, x is clamped to that range.
/// Cody-Waite reduction x = n ln2 + r and the Taylor polynomial of degree 7 on |r| <= ln2 / 2. NaN stays NaN.
inline float exp_of(float x) {
  float c = x < -87.0f ? -87.0f : x;
  c = c > 88.0f ? 88.0f : c;
  const float n = std::rint(c * 1.44269504088896341f);
  const float r = (c - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.98412698e-4f;
  p = p * r + 1.38888889e-3f;
  p = p * r + 8.33333333e-3f;
  p = p * r + 4.16666667e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * std::bit_cast<float>((int32_t(n) + 127) << 23);
}

template <class T>
inline T sigmoid(T x) {
  return T(1) / (T(1) + exp_of(-x));
}

/// The functions that core/activation.h takes from a backend.
struct Maths {
  template <class T>
  static T exp(T x) {
    return exp_of(x);
  }
  template <class T>
  static T sigmoid(T x) {
    return cpu::sigmoid(x);
  }
  template <class T>
  static T erf(T x) {
    return std::erf(x);
  }
};

}  // namespace mmfree::cpu
