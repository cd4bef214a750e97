#include <gtest/gtest.h>

#include "core/ops/elementwise.h"
#include "tests/support/tensors.h"

using namespace mmfree;

TEST(Elementwise, AddsAlsoInPlace) {
  for (DType t : {DType::f64, DType::f32})
    for (int64_t n : {0, 1, 33, 70001}) {
      const Tensor a = random_tensor({n}, t, 1), b = random_tensor({n}, t, 2);
      Tensor y({n}, t), left = a.clone(), right = b.clone(), expected({n}, t);
      for (int64_t i = 0; i < n; ++i) set(expected, i, at(a, i) + at(b, i));
      add(a, b, y);
      add(left, b, left);
      add(a, right, right);
      for (const Tensor& got : {y, left, right}) EXPECT_TRUE(same_bits(expected, got)) << n;
    }
}

TEST(Elementwise, CastsToTheNearest) {
  const Tensor x = random_tensor({70001}, DType::f64, 1, 1e3);
  const Tensor f = as_type(x, DType::f32), b = as_type(f, DType::bf16);
  const Tensor back = as_type(b, DType::f32);
  for (int64_t i = 0; i < x.size(); ++i) {
    ASSERT_EQ(float(at(x, i)), f.data<float>()[i]);
    ASSERT_NEAR(at(f, i), at(back, i), std::abs(at(f, i)) * 0x1p-8);  // half of the last of 8 bits
  }
  EXPECT_TRUE(same_bits(f, as_type(as_type(f, DType::f64), DType::f32)));
}

TEST(Elementwise, Bfloat16RoundsHalvesToEvenAndKeepsSpecials) {
  const auto round = [](float x) { return float(bf16(x)); };
  EXPECT_EQ(1.0f, round(1 + 0x1p-8f));             // half way between 1 and 1 + 2^-7: even is 1
  EXPECT_EQ(1 + 0x1p-6f, round(1 + 3 * 0x1p-8f));  // half way between odd and even mantissas
  EXPECT_EQ(1 + 0x1p-7f, round(1 + 0x1.02p-8f));   // just above a half
  EXPECT_EQ(0x1p-133f, round(0x1p-133f));          // smallest subnormal
  EXPECT_TRUE(std::isinf(round(3.4e38f)));         // rounds past the largest
  EXPECT_EQ(float(-kInfinity), round(float(-kInfinity)));
  EXPECT_TRUE(std::isnan(round(float(kNaN))));
  EXPECT_TRUE(std::isnan(round(std::bit_cast<float>(0x7f800001u))));  // a NaN with nothing in the upper half
}

TEST(Elementwise, SumsSquares) {
  for (DType t : {DType::f64, DType::f32})
    for (int64_t n : {0, 1, 3, 4095, 4096, 4097, 70001}) {
      const Tensor x = random_tensor({n}, t, 1, 3);
      long double sum = 0;
      for (int64_t i = 0; i < n; ++i) sum += (long double)(at(x, i)) * at(x, i);
      // 16 lanes of up to 256 squares each.
      EXPECT_NEAR(double(sum), sum_of_squares(x), double(sum) * 256 * epsilon_of(t)) << n;
    }
}

TEST(Elementwise, SumOfSquaresShowsAnyNonFiniteElement) {
  for (double bad : {kNaN, kInfinity, -kInfinity})
    for (int64_t i : {0, 4096, 5000}) {
      Tensor x = random_tensor({5001}, DType::f32, 1);
      set(x, i, bad);
      EXPECT_FALSE(std::isfinite(sum_of_squares(x)));
    }
}

TEST(Elementwise, SumsWithAScaleOntoWhatWasThere) {
  for (DType t : {DType::f64, DType::f32})
    for (int64_t n : {0, 1, 3, 4095, 4096, 4097, 70001}) {
      const Tensor x = random_tensor({n}, t, 1, 3);
      long double total = 0, size = 1;
      for (int64_t i = 0; i < n; ++i) total += at(x, i), size += std::abs(at(x, i));
      // Partial sums in f64, whatever the elements are.
      const double bound = 4096 * epsilon_of(DType::f64) * double(size);
      Tensor out = full({1}, DType::f64, kNaN);
      sum(x, 0.25, out);
      EXPECT_NEAR(0.25 * double(total), at(out, 0), bound) << n << ": beta 0 must not read the old content";
      const double once = at(out, 0);
      sum(x, 1, out, -2);
      EXPECT_NEAR(double(total) - 2 * once, at(out, 0), bound) << n;
    }
  Tensor x = random_tensor({5001}, DType::f32, 1), out({1}, DType::f64);
  set(x, 4500, kNaN);
  sum(x, 1, out);
  EXPECT_TRUE(std::isnan(at(out, 0)));
}

TEST(Elementwise, FillsEveryElement) {
  for (DType t : {DType::f64, DType::f32})
    for (int64_t n : {0, 1, 33, 70001}) {
      Tensor y = full({n}, t, kNaN);
      fill(y, 1.0 / 3);
      EXPECT_TRUE(same_bits(full({n}, t, 1.0 / 3), y)) << n;
    }
  Tensor whole = Tensor::zeros({3, 5}, DType::f64), middle = whole.slice(1, 2);
  fill(middle, 7);
  for (int64_t i = 0; i < 15; ++i) EXPECT_EQ(i / 5 == 1 ? 7 : 0, at(whole, i)) << i;
}

TEST(Elementwise, GivesTheSameBitsForAnyNumberOfThreads) {
  const Tensor a = random_tensor({200001}, DType::f32, 1), b = random_tensor({200001}, DType::f32, 2);
  expect_same_bits_for_any_threads([&] {
    Tensor y(a.shape(), DType::f32), total({1}, DType::f64);
    add(a, b, y);
    sum(a, 0.5, total);
    return std::vector<Tensor>{y, as_type(a, DType::bf16), full({1}, DType::f64, sum_of_squares(a)), total};
  });
}

TEST(Elementwise, RejectsWrongArguments) {
  const Tensor a({2, 3}, DType::f32), codes({2, 3}, DType::i8);
  Tensor y({2, 3}, DType::f32), flat({6}, DType::f32), codes_out({2, 3}, DType::i8);
  expect_error<ShapeError>({"add", "b", "[6]"}, [&] { add(a, flat, y); });
  expect_error<ShapeError>({"add", "y"}, [&] { add(a, a, flat); });
  expect_error<DTypeError>({"add", "one dtype", "f32 + i8 -> f32"}, [&] { add(a, codes, y); });
  expect_error<DTypeError>({"add", "i8"}, [&] { add(codes, codes, codes_out); });
  Tensor f64({2, 3}, DType::f64), two({2}, DType::f64);
  expect_error<DTypeError>({"add", "one dtype", "f64 + f32 -> f64"}, [&] { add(f64, a, f64); });
  expect_error<ShapeError>({"sum", "out", "[2]"}, [&] { sum(a, 1, two); });
  expect_error<DTypeError>({"sum_of_squares", "out", "f32"}, [&] { sum_of_squares(a, y = Tensor({1}, DType::f32)); });
  expect_error<DTypeError>({"sum", "i8"}, [&] { sum(codes, 1, two = Tensor({1}, DType::f64)); });
  expect_error<DTypeError>({"fill", "i8"}, [&] { fill(codes_out, 1); });
  y = Tensor({2, 3}, DType::f32);
  expect_error<ShapeError>({"cast", "to"}, [&] { cast(a, flat); });
  expect_error<DTypeError>({"cast", "i8"}, [&] { cast(codes, y); });
  expect_error<DTypeError>({"cast", "i8"}, [&] { cast(a, codes_out); });
}
