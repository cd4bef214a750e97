// Every activation function, through the sources of norm_quant that compute it, without a norm and without rounding.
#include <gtest/gtest.h>

#include <set>

#include "core/ops/norm_quant.h"
#include "tests/support/composed.h"

using namespace mmfree;

namespace {

RowSource source_of(RowSource::Kind kind, Activation f, const Tensor& a) {
  RowSource s;
  s.kind = kind, s.f = f, s.a = a;
  return s;
}

Tensor forward(const RowSource& s) {
  Tensor x({s.rows_count(), s.width()}, s.a.dtype()), none;
  std::vector<NormBranch> bare{{{}, Rounding::none, x, {}}};
  NormStats stats;
  norm_quant(s, {}, 1, 1, bare, stats, none);
  return x;
}

Tensor backward(const RowSource& s, const Tensor& dx) {
  std::vector<NormBranchGrad> bare{{{}, dx, {}}};
  RowSourceGrad grad;
  grad.a = full(s.a.shape(), s.a.dtype(), kNaN);
  Tensor none;
  norm_quant_backward(s, {}, 1, {}, bare, grad, none, 0);
  return grad.a;
}

/// f'(x) by a central difference of the composed formula: good to about 1e-9 of f's size.
double slope(Activation f, double x) {
  constexpr double h = 1e-5;
  return (composed::activation(f, x + h) - composed::activation(f, x - h)) / (2 * h);
}

/// Numbers from where every function is flat to where it is steep, none at a kink.
Tensor arguments(int64_t n, int64_t d, DType t) { return random_tensor({n, d}, t, 1, 3); }

/// An exponential and an error function good to 2 eps of their own size, a few operations.
double bound(DType t) { return 8 * epsilon_of(t); }

}  // namespace

TEST(Activations, HaveTheNamesThatConfigurationsUse) {
  std::set<std::string> names;
  for (Activation f : kAllActivations) names.insert(name_of(f));
  EXPECT_EQ((std::set<std::string>{"silu", "gelu", "gelu_tanh", "relu", "relu2", "selu", "sigmoid", "identity"}),
            names);
}

TEST(Activations, FollowTheirFormulas) {
  for (Activation f : kAllActivations)
    for (DType t : {DType::f64, DType::f32})
      for (int64_t d : kOddColumns) {
        SCOPED_TRACE(concat(name_of(f), ' ', name_of(t), ' ', d));
        const Tensor a = arguments(5, d, t), halves = arguments(5, 2 * d, t);
        EXPECT_LE(relative_error(forward(source_of(RowSource::activation, f, a)), composed::activation(f, a)),
                  bound(t));
        EXPECT_LE(relative_error(forward(source_of(RowSource::glu, f, halves)), composed::glu(f, halves)), bound(t));
      }
}

TEST(Activations, SlopesAreThoseOfTheFormulas) {
  for (Activation f : kAllActivations)
    for (DType t : {DType::f64, DType::f32})
      for (int64_t d : kOddColumns) {
        SCOPED_TRACE(concat(name_of(f), ' ', name_of(t), ' ', d));
        const double close = t == DType::f64 ? 1e-8 : 4 * bound(t);  // the difference quotient; a few more operations
        const Tensor a = arguments(5, d, t), halves = arguments(5, 2 * d, t), dx = random_tensor({5, d}, t, 2);
        Tensor expected({5, d}, DType::f64), expected_halves({5, 2 * d}, DType::f64);
        for (int64_t i = 0; i < 5 * d; ++i) {
          set(expected, i, at(dx, i) * slope(f, at(a, i)));
          const int64_t left = i / d * 2 * d + i % d, up = left + d;
          set(expected_halves, left, at(dx, i) * slope(f, at(halves, left)) * at(halves, up));
          set(expected_halves, up, at(dx, i) * composed::activation(f, at(halves, left)));
        }
        EXPECT_LE(relative_error(backward(source_of(RowSource::activation, f, a), dx), expected), close);
        EXPECT_LE(relative_error(backward(source_of(RowSource::glu, f, halves), dx), expected_halves), close);
      }
}

TEST(Activations, StayFiniteFarOut) {
  for (Activation f : kAllActivations)
    for (DType t : {DType::f64, DType::f32})
      for (double x : {-1e4, -200.0, -90.0, -20.0, 0.0, 20.0, 90.0, 200.0, 1e4}) {
        const RowSource s = source_of(RowSource::activation, f, full({1, 3}, t, x));
        const double expected = composed::activation(f, x);
        EXPECT_NEAR(expected, at(forward(s), 0), bound(t) * (std::abs(expected) + 1)) << name_of(f) << ' ' << x;
        EXPECT_EQ(0, count_non_finite(backward(s, full({1, 3}, t, 1)))) << name_of(f) << ' ' << x;
      }
}

TEST(Activations, NaNReachesTheOutput) {
  for (Activation f : kAllActivations)
    for (DType t : {DType::f64, DType::f32}) {
      for (int64_t column : {4, 33 + 4}) {
        Tensor halves = arguments(2, 66, t);
        set(halves, 66 + column, kNaN);
        const Tensor y = forward(source_of(RowSource::glu, f, halves));
        EXPECT_EQ(1, count_non_finite(y)) << name_of(f);
        EXPECT_TRUE(std::isnan(at(y, 33 + 4))) << name_of(f);
      }
      Tensor a = arguments(2, 33, t);
      set(a, 33 + 4, kNaN);
      EXPECT_TRUE(std::isnan(at(forward(source_of(RowSource::activation, f, a)), 33 + 4))) << name_of(f);
    }
}

TEST(Activations, GiveTheSameBitsForAnyNumberOfThreads) {
  const Tensor halves = arguments(100, 254, DType::f32), dx = random_tensor({100, 127}, DType::f32, 2);
  for (Activation f : kAllActivations) {
    const RowSource s = source_of(RowSource::glu, f, halves);
    expect_same_bits_for_any_threads([&] { return std::vector<Tensor>{forward(s), backward(s, dx)}; });
  }
}

TEST(Activations, UnknownKindsEndInAnError) {
  const Tensor a = arguments(2, 6, DType::f32);
  for (RowSource::Kind kind : {RowSource::glu, RowSource::activation}) {
    const RowSource s = source_of(kind, Activation(99), a);
    expect_error<Error>({"activation 99"}, [&] { forward(s); });
    expect_error<Error>({"activation 99"}, [&] { backward(s, Tensor({2, s.width()}, DType::f32)); });
  }
  const RowSource s = source_of(RowSource::Kind(77), Activation::silu, a);
  expect_error<Error>({"norm_quant", "source kind 77"}, [&] { forward(s); });
  expect_error<Error>({"norm_quant_backward", "source kind 77"}, [&] { backward(s, a); });
}
