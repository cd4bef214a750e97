#pragma once
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <initializer_list>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "core/ops/elementwise.h"
#include "tests/support/compare.h"

namespace mmfree {

/// Columns around and between vector widths and block sizes.
inline constexpr int64_t kOddColumns[] = {1, 3, 31, 33, 127, 1000};

/// A conversion between f64, f32 and bf16; an undefined tensor stays undefined.
inline Tensor as_type(const Tensor& t, DType dtype) {
  if (!t.defined() || t.dtype() == dtype) return t;
  Tensor out(t.shape(), dtype);
  cast(t, out);
  return out;
}

/// Normal numbers with standard deviation `scale` around `mean`: the same for f32 and f64 up to rounding.
inline Tensor random_tensor(Shape shape, DType dtype, uint32_t seed, double scale = 1, double mean = 0) {
  std::mt19937 rng(seed);
  std::normal_distribution<double> normal(mean, scale);
  std::vector<double> values(size_t(shape.size()));
  for (double& v : values) v = normal(rng);
  return as_type(Tensor::from(shape, values.data()), dtype);
}

/// Ids in 0..limit-1, with repetitions.
inline Tensor random_ids(int64_t n, int64_t limit, uint32_t seed) {
  std::mt19937 rng(seed);
  std::vector<int32_t> ids(static_cast<size_t>(n));
  for (int32_t& id : ids) id = int32_t(rng() % uint32_t(limit));
  return Tensor::from({n}, ids.data());
}

inline Tensor full(Shape shape, DType dtype, double value) {
  const std::vector<double> values(size_t(shape.size()), value);
  return as_type(Tensor::from(shape, values.data()), dtype);
}

inline double at(const Tensor& t, int64_t i) {
  return t.dtype() == DType::f32 ? double(t.data<float>()[i]) : t.data<double>()[i];
}

inline void set(Tensor& t, int64_t i, double value) {
  if (t.dtype() == DType::f32)
    t.mut<float>()[i] = float(value);
  else
    t.mut<double>()[i] = value;
}

inline int64_t count_non_finite(const Tensor& t) {
  int64_t count = 0;
  for (int64_t i = 0; i < t.size(); ++i) count += !std::isfinite(at(t, i));
  return count;
}

inline double epsilon_of(DType t) {
  return t == DType::f32 ? double(std::numeric_limits<float>::epsilon()) : std::numeric_limits<double>::epsilon();
}

inline constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Runs `outputs` (returning a list of tensors) with 1, 2, 3 and 5 threads and expects the same bits.
template <class Outputs>
void expect_same_bits_for_any_threads(Outputs&& outputs) {
  const int saved = omp_get_max_threads();
  std::vector<Tensor> first;
  for (int threads : {1, 2, 3, 5}) {
    omp_set_num_threads(threads);
    const std::vector<Tensor> now = outputs();
    if (first.empty()) first = now;
    for (size_t i = 0; i < now.size(); ++i)
      EXPECT_TRUE(same_bits(first[i], now[i])) << "output " << i << " with " << threads << " threads";
  }
  omp_set_num_threads(saved);
}

/// Expects `body` to throw exactly ErrorType with a one-line message that holds every part.
template <class ErrorType, class Body>
void expect_error(std::initializer_list<const char*> parts, Body&& body) {
  try {
    body();
    ADD_FAILURE() << "nothing thrown; expected a message with '" << *parts.begin() << "'";
  } catch (const ErrorType& e) {
    const std::string what = e.what();
    EXPECT_EQ(std::string::npos, what.find('\n')) << what;
    for (const char* part : parts) EXPECT_NE(std::string::npos, what.find(part)) << what << " lacks '" << part << "'";
  } catch (const std::exception& e) {
    ADD_FAILURE() << "another error: " << e.what();
  }
}

/// Checks what a backward kernel does with `beta`: run(out, beta) must compute out = beta·out + g. With 0 the old
/// content, NaN here, must not be read; with 1 and −0.5 it must count in full.
template <class Run>
void expect_beta_semantics(Shape shape, DType dtype, Run&& run) {
  Tensor g = Tensor::zeros(shape, dtype);
  run(g, 0.0);
  ASSERT_EQ(0, count_non_finite(g));
  Tensor over_nan = full(shape, dtype, kNaN);
  run(over_nan, 0.0);
  EXPECT_TRUE(same_bits(g, over_nan)) << "beta 0 reads the old content";
  for (double beta : {1.0, -0.5}) {
    const Tensor old = random_tensor(shape, dtype, 99);
    Tensor sum = old.clone();
    run(sum, beta);
    for (int64_t i = 0; i < g.size(); ++i) {
      const double expected = beta * at(old, i) + at(g, i);
      ASSERT_NEAR(expected, at(sum, i), 64 * epsilon_of(dtype) * (std::abs(at(old, i)) + std::abs(at(g, i)) + 1))
          << "beta " << beta << " at " << i;
    }
  }
}

}  // namespace mmfree
