#include <gtest/gtest.h>

#include "core/ops/rope.h"
#include "tests/support/starts.h"
#include "tests/support/tensors.h"

using namespace mmfree;

TEST(Rope, TurnsPairsByTheirPosition) {
  constexpr int64_t kBatch = 2, kSteps = 21, kHeads = 3, kWidth = 24, kFirst = 1000;
  constexpr double kTheta = 10000;
  for (DType type : {DType::f64, DType::f32})
    for (bool starts : {false, true}) {
      const Tensor x = random_tensor({kBatch, kSteps, kHeads, kWidth}, type, 1);
      Positions positions{kFirst, {}};
      Tensor after({kBatch}, DType::i32);
      if (starts) {
        positions.begins = Tensor({kBatch, kSteps}, DType::i32);
        document_begins(some_starts(kBatch, kSteps), {}, kFirst, positions.begins, after);
      }
      Tensor expected(x.shape(), DType::f64), y(x.shape(), type), back = x.clone();
      for (int64_t n = 0; n < kBatch * kSteps; ++n)
        for (int64_t h = 0; h < kHeads; ++h)
          for (int64_t i = 0; i < kWidth / 2; ++i) {
            const int64_t a = (n * kHeads + h) * kWidth + i, b = a + kWidth / 2;
            const double p = double(kFirst + n % kSteps - (starts ? positions.begins.data<int32_t>()[n] : 0));
            const double angle = p * std::pow(kTheta, -2.0 * double(i) / kWidth);
            set(expected, a, at(x, a) * std::cos(angle) - at(x, b) * std::sin(angle));
            set(expected, b, at(x, b) * std::cos(angle) + at(x, a) * std::sin(angle));
          }
      rope(x, positions, kTheta, y);
      // An angle of 1,000 radians carries 1,000 roundings of f64, and an f32 result two of its own.
      EXPECT_LE(relative_error(y, expected), type == DType::f64 ? 1e-12 : 4e-7) << starts;
      rope(back, positions, kTheta, back);
      EXPECT_TRUE(same_bits(back, y)) << "in place";
      rope_backward(back, positions, kTheta, back);
      EXPECT_LE(relative_error(back, x), 8 * epsilon_of(type)) << "there and back";
    }
}

TEST(DocumentBegins, CarryOverCalls) {
  const uint8_t marks[] = {0, 1, 0, 1, 0, 0};
  const int32_t before[] = {7, 4};
  Tensor begins({2, 3}, DType::i32), after = Tensor::from({2}, before);
  document_begins(Tensor::from({2, 3}, marks), after, 10, begins, after);
  const int32_t expected[] = {7, 11, 11, 10, 10, 10}, last[] = {11, 10};
  EXPECT_TRUE(same_bits(begins, Tensor::from({2, 3}, expected)));
  EXPECT_TRUE(same_bits(after, Tensor::from({2}, last)));
}
