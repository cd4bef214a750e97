#include <gtest/gtest.h>

#include "core/ops/lower_bounds.h"
#include "tests/support/composed.h"

using namespace mmfree;

namespace {

Tensor forward(const Tensor& lambda) {
  Tensor gamma(lambda.shape(), lambda.dtype());
  lower_bounds(lambda, gamma);
  return gamma;
}

Tensor backward(const Tensor& lambda, const Tensor& dgamma) {
  Tensor dlambda(lambda.shape(), lambda.dtype());
  lower_bounds_backward(lambda, dgamma, dlambda, 0);
  return dlambda;
}

}  // namespace

TEST(LowerBounds, MatchesItsComposedTwin) {
  for (DType t : {DType::f64, DType::f32})
    for (int64_t d : kOddColumns)
      for (int64_t layers : {1, 2, 24}) {
        const Tensor lambda = random_tensor({layers, d}, t, 1, 2);
        // Two sums of `layers` terms.
        EXPECT_LE(relative_error(forward(lambda), composed::lower_bounds(lambda)), double(8 + layers) * epsilon_of(t))
            << name_of(t) << ' ' << layers << 'x' << d;
      }
}

TEST(LowerBounds, RisesFromZeroToLessThanOne) {
  for (DType t : {DType::f64, DType::f32}) {
    const Tensor equal = forward(Tensor::zeros({24, 3}, t)), gamma = forward(random_tensor({24, 3}, t, 1));
    for (int64_t k = 0; k < 3; ++k) {
      EXPECT_EQ(0, at(gamma, k));
      EXPECT_LT(at(gamma, 23 * 3 + k), 1);
      for (int64_t l = 0; l < 24; ++l) EXPECT_NEAR(double(l) / 24, at(equal, l * 3 + k), 24 * epsilon_of(t));
      for (int64_t l = 1; l < 24; ++l) EXPECT_GT(at(gamma, l * 3 + k), at(gamma, (l - 1) * 3 + k));
    }
    EXPECT_EQ(0, count_non_finite(forward(full({3, 1}, t, 1000))));
  }
}

TEST(LowerBounds, GradientsInSinglePrecisionFollowThoseInDouble) {
  const Tensor lambda = random_tensor({8, 33}, DType::f32, 1), dgamma = random_tensor({8, 33}, DType::f32, 2);
  EXPECT_LE(relative_error(backward(lambda, dgamma), backward(as_f64(lambda), as_f64(dgamma))), 4e-6);
}

TEST(LowerBounds, BackwardHonoursBeta) {
  for (DType t : {DType::f64, DType::f32}) {
    const Tensor lambda = random_tensor({5, 33}, t, 1), dgamma = random_tensor({5, 33}, t, 2);
    expect_beta_semantics(lambda.shape(), t,
                          [&](Tensor& dlambda, double beta) { lower_bounds_backward(lambda, dgamma, dlambda, beta); });
  }
}

TEST(LowerBounds, GivesTheSameBitsForAnyNumberOfThreads) {
  const Tensor lambda = random_tensor({24, 1000}, DType::f32, 1), dgamma = random_tensor({24, 1000}, DType::f32, 2);
  expect_same_bits_for_any_threads([&] { return std::vector<Tensor>{forward(lambda), backward(lambda, dgamma)}; });
}

TEST(LowerBounds, NaNSpreadsOverItsChannel) {
  for (int64_t layer : {0, 2}) {
    Tensor lambda = random_tensor({3, 4}, DType::f32, 1);
    set(lambda, layer * 4 + 1, kNaN);
    const Tensor gamma = forward(lambda);
    for (int64_t l = 1; l < 3; ++l)
      for (int64_t k = 0; k < 4; ++k) EXPECT_EQ(k == 1, std::isnan(at(gamma, l * 4 + k)));
  }
}

TEST(LowerBounds, RejectsWrongArguments) {
  const Tensor lambda({3, 4}, DType::f32);
  Tensor wrong({3, 5}, DType::f32), wide({3, 4}, DType::f64);
  expect_error<ShapeError>({"lower_bounds", "lambda"}, [&] { forward(Tensor({12}, DType::f32)); });
  expect_error<ShapeError>({"lower_bounds", "gamma", "[3, 5]"}, [&] { lower_bounds(lambda, wrong); });
  expect_error<DTypeError>({"lower_bounds", "gamma", "f64"}, [&] { lower_bounds(lambda, wide); });
  expect_error<ShapeError>({"lower_bounds_backward", "dgamma"}, [&] { backward(lambda, wrong); });
  expect_error<ShapeError>({"lower_bounds_backward", "dlambda"},
                           [&] { lower_bounds_backward(lambda, lambda, wrong, 0); });
  const DryRun dry;
  const ArenaScope scope(Arena::counted());
  Tensor there({3, 4}, DType::f32, Device::cuda), here({3, 4}, DType::f32);
  expect_error<DeviceError>({"lower_bounds", "different devices"}, [&] { lower_bounds(lambda, there); });
  expect_error<DeviceError>({"lower_bounds_backward", "different devices"},
                            [&] { lower_bounds_backward(lambda, there, here, 0); });
}
