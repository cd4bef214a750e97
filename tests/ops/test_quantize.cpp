#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "core/quantize.h"
#include "tests/support/tensors.h"

using namespace mmfree;

template <class T>
class Quantize : public testing::Test {};
using Floats = testing::Types<float, double>;
TYPED_TEST_SUITE(Quantize, Floats);

TYPED_TEST(Quantize, RoundsToTheNearestWithHalvesAwayFromZero) {
  using T = TypeParam;
  for (T v : {T(0), T(0.25), T(0.5), T(0.75), T(1.5), T(2.5), T(126.5), T(127), T(4194303)})
    for (T sign : {T(1), T(-1)})
      for (T at : {sign * v, std::nextafter(sign * v, T(-1e9)), std::nextafter(sign * v, T(1e9))})
        EXPECT_EQ(std::round(at), round_half_away(at)) << at;
  std::mt19937 rng(1);
  for (int i = 0; i < 20000; ++i) {
    const T v = T(std::uniform_real_distribution<double>(-130, 130)(rng));
    ASSERT_EQ(std::round(v), round_half_away(v)) << v;
  }
}

TYPED_TEST(Quantize, ActivationScaleInvertsItsStep) {
  using T = TypeParam;
  for (double m : {1e-5, 3e-4, 1.0, 127.0, 6.5e4}) {
    const auto s = activation_scale(T(m));
    EXPECT_EQ(T(127) / T(m), s.inverse);
    EXPECT_EQ(T(m) / T(127), s.step);
  }
  for (double tiny : {0.0, 1e-300, 9e-6}) EXPECT_EQ(T(1e-5) / T(127), activation_scale(T(tiny)).step) << tiny;
}

TYPED_TEST(Quantize, ActivationScaleKeepsNaNAndInfinity) {
  using T = TypeParam;
  EXPECT_TRUE(std::isnan(activation_scale(T(kNaN)).step));
  EXPECT_TRUE(std::isinf(activation_scale(T(kInfinity)).step));
}

TYPED_TEST(Quantize, ActivationCodesSpanTheFullRangeAndNeverWrap) {
  using T = TypeParam;
  std::mt19937 rng(2);
  for (int i = 0; i < 20000; ++i) {
    const T m = T(std::exp(std::uniform_real_distribution<double>(-11, 11)(rng)));
    const auto s = activation_scale(m);
    ASSERT_EQ(127, activation_code(m, s.inverse)) << m;
    ASSERT_EQ(-127, activation_code(-m, s.inverse)) << m;
    const T u = m * T(std::uniform_real_distribution<double>(-1, 1)(rng));
    ASSERT_NEAR(double(u), activation_code(u, s.inverse) * double(s.step), 0.50002 * double(s.step));
  }
  EXPECT_EQ(0, activation_code(T(kNaN), T(1)));
  EXPECT_EQ(0, activation_code(T(0), T(127e5)));
}

TYPED_TEST(Quantize, WeightCodesRoundHalvesToEvenAndClamp) {
  using T = TypeParam;
  for (auto [v, code] :
       {std::pair<double, int>{0, 0}, {0.5, 0}, {-0.5, 0}, {0.75, 1}, {-0.75, -1}, {1.5, 1}, {-40, -1}})
    EXPECT_EQ(code, weight_code(T(v), T(1))) << v;
  EXPECT_EQ(1, weight_code(std::nextafter(T(0.5), T(1)), T(1)));
  EXPECT_EQ(-1, weight_code(std::nextafter(T(-0.5), T(-1)), T(1)));
  std::mt19937 rng(3);
  for (int i = 0; i < 20000; ++i) {
    const T v = T(std::normal_distribution<double>()(rng));
    ASSERT_EQ(int(std::clamp(std::nearbyint(v), T(-1), T(1))), weight_code(v, T(1))) << v;
  }
}

TYPED_TEST(Quantize, WeightScaleIsTheMeanKeptOffZero) {
  using T = TypeParam;
  EXPECT_EQ(T(0.02), weight_scale<T>(0.02));
  EXPECT_EQ(T(1e-5), weight_scale<T>(0));
  EXPECT_TRUE(std::isnan(weight_scale<T>(kNaN)));
}
