#include <gtest/gtest.h>

#include "core/ops/swiglu.h"
#include "tests/support/composed.h"

using namespace mmfree;

namespace {

Tensor forward(const Tensor& x) {
  Tensor y({x.dim(0), x.dim(1) / 2}, x.dtype());
  swiglu(x, y);
  return y;
}

Tensor backward(const Tensor& x, const Tensor& dy) {
  Tensor dx = full(x.shape(), x.dtype(), kNaN);  // it must be overwritten
  swiglu_backward(x, dy, dx);
  return dx;
}

}  // namespace

TEST(Swiglu, MatchesItsComposedTwin) {
  for (DType t : {DType::f64, DType::f32})
    for (int64_t inner : kOddColumns)
      for (int64_t n : {1, 19}) {
        const Tensor x = random_tensor({n, 2 * inner}, t, 1, 4);
        // An exponential good to 2 eps and four roundings.
        EXPECT_LE(relative_error(forward(x), composed::swiglu(x)), 8 * epsilon_of(t)) << n << 'x' << inner;
      }
}

TEST(Swiglu, SaturatesWithoutOverflow) {
  for (DType t : {DType::f64, DType::f32})
    for (double gate : {-1e4, -200.0, -90.0, 90.0, 200.0, 1e4}) {
      Tensor x({1, 2}, t);
      set(x, 0, gate), set(x, 1, 2);
      EXPECT_NEAR(gate > 0 ? 2 * gate : 0, at(forward(x), 0), 1e-3) << gate;
      EXPECT_EQ(0, count_non_finite(backward(x, full({1, 1}, t, 1)))) << gate;
    }
}

TEST(Swiglu, GradientsInSinglePrecisionFollowThoseInDouble) {
  for (int64_t inner : kOddColumns) {
    const Tensor x = random_tensor({19, 2 * inner}, DType::f32, 1, 3), dy = random_tensor({19, inner}, DType::f32, 2);
    EXPECT_LE(relative_error(backward(x, dy), backward(as_f64(x), as_f64(dy))), 16 * epsilon_of(DType::f32));
  }
}

TEST(Swiglu, GivesTheSameBitsForAnyNumberOfThreads) {
  const Tensor x = random_tensor({100, 254}, DType::f32, 1), dy = random_tensor({100, 127}, DType::f32, 2);
  expect_same_bits_for_any_threads([&] { return std::vector<Tensor>{forward(x), backward(x, dy)}; });
}

TEST(Swiglu, RowsDoNotDependOnEachOther) {
  for (int64_t inner : kOddColumns) {
    const Tensor x = random_tensor({37, 2 * inner}, DType::f32, 1), whole = forward(x);
    for (int64_t n : {0, 1, 16, 36}) {
      EXPECT_TRUE(same_bits(whole.slice(n, n + 1), forward(x.slice(n, n + 1))));
      EXPECT_TRUE(same_bits(whole.slice(n, n + 1), forward(x.slice(n, n + 1).clone())));
    }
  }
}

TEST(Swiglu, NaNReachesTheOutput) {
  for (DType t : {DType::f64, DType::f32})
    for (int64_t column : {4, 33 + 4}) {
      Tensor x = random_tensor({2, 66}, t, 1);
      set(x, 66 + column, kNaN);
      const Tensor y = forward(x);
      EXPECT_EQ(1, count_non_finite(y));
      EXPECT_TRUE(std::isnan(at(y, 33 + 4)));
    }
}

TEST(Swiglu, RejectsWrongArguments) {
  const Tensor x({2, 6}, DType::f32), odd({2, 7}, DType::f32), dy({2, 3}, DType::f32);
  Tensor narrow({2, 2}, DType::f32), y64({2, 3}, DType::f64), odd_dx({2, 7}, DType::f32);
  expect_error<ShapeError>({"swiglu", "x", "even"}, [&] { forward(odd); });
  expect_error<ShapeError>({"swiglu", "y", "[2, 2]"}, [&] { swiglu(x, narrow); });
  expect_error<DTypeError>({"swiglu", "y", "f64"}, [&] { swiglu(x, y64); });
  expect_error<ShapeError>({"swiglu_backward", "dy"}, [&] { backward(x, narrow); });
  expect_error<ShapeError>({"swiglu_backward", "x", "even"}, [&] { swiglu_backward(odd, dy, odd_dx); });
}
