#include "core/ops/elementwise.h"
#include "tests/cuda/transfer.h"

using namespace mmfree;

namespace {

// Around widths of accesses and blocks of threads; the last does not fit one block.
constexpr int64_t kSizes[] = {0, 1, 3, 4, 5, 127, 1000, 2048, 4095, 4096, 4097, 100003};

/// Numbers with zeros, subnormals, infinities and a NaN among them, where there is room.
Tensor special_numbers(int64_t n, DType type) {
  Tensor t = random_tensor({n}, DType::f32, 1, 100);
  const double special[] = {0, -0.0, 1e-40, -1e-40, 3.4e38, kInfinity, -kInfinity, kNaN, 1.00390625};
  for (int64_t i = 0; i < 9 && i * 11 < n; ++i) set(t, i * 11, special[i]);
  return as_type(t, type);
}

/// Equal numbers of equal sign, or NaN on both sides.
void expect_equal(const Tensor& expected, const Tensor& got) {
  ASSERT_EQ(expected.size(), got.size());
  const Tensor a = as_f64(expected), b = as_f64(got);
  for (int64_t i = 0; i < a.size(); ++i) {
    if (std::isnan(at(a, i)))
      ASSERT_TRUE(std::isnan(at(b, i))) << i;
    else
      ASSERT_TRUE(at(a, i) == at(b, i) && std::signbit(at(a, i)) == std::signbit(at(b, i)))
          << i << ": " << at(a, i) << " and " << at(b, i);
  }
}

}  // namespace

TEST(CudaElementwise, AddsInEveryCombinationOfDtypes) {
  MMFREE_NEEDS_GPU();
  for (auto [type_a, type_b] :
       {std::pair{DType::f32, DType::f32}, {DType::f32, DType::bf16}, {DType::bf16, DType::bf16}})
    for (int64_t n : kSizes) {
      const Tensor a = special_numbers(n, type_a), b = as_type(random_tensor({n}, DType::f32, 2), type_b);
      const Tensor wide_a = as_type(a, DType::f32), wide_b = as_type(b, DType::f32);
      Tensor sums({n}, DType::f32), y = empty_on_gpu({n}, type_a);
      for (int64_t i = 0; i < n; ++i) sums.mut<float>()[i] = wide_a.data<float>()[i] + wide_b.data<float>()[i];
      add(to_gpu(a), to_gpu(b), y);
      expect_equal(as_type(sums, type_a), from_gpu(y));
    }
}

TEST(CudaElementwise, AddsInPlace) {
  MMFREE_NEEDS_GPU();
  const Tensor a = random_tensor({1001}, DType::f32, 1), b = random_tensor({1001}, DType::f32, 2);
  Tensor expected({1001}, DType::f32), y = to_gpu(a);
  add(a, b, expected);
  add(y, to_gpu(b), y);
  EXPECT_TRUE(same_bits(expected, from_gpu(y)));
}

TEST(CudaElementwise, ConvertsAsTheCpuDoes) {
  MMFREE_NEEDS_GPU();
  const DType types[] = {DType::f64, DType::f32, DType::bf16};
  for (DType from : types)
    for (DType to : types)
      for (int64_t n : kSizes) {
        const Tensor x = special_numbers(n, from);
        Tensor expected({n}, to), got = empty_on_gpu({n}, to);
        cast(x, expected);
        cast(to_gpu(x), got);
        expect_equal(expected, got.to(Device::cpu));
        if (n < 2) continue;
        Tensor part = got.slice(1, n);  // its address is no multiple of an access
        cast(to_gpu(x).slice(1, n), part);
        expect_equal(expected, got.to(Device::cpu));
      }
}

TEST(CudaElementwise, FillsAPartAlone) {
  MMFREE_NEEDS_GPU();
  for (DType type : {DType::f64, DType::f32, DType::bf16})
    for (int64_t n : kSizes) {
      if (n < 3) continue;
      Tensor y = empty_on_gpu({n}, type);
      fill(y, 2.5);
      Tensor inner = y.slice(1, n - 1);
      fill(inner, -1);
      const Tensor got = as_f64(from_gpu(y));
      for (int64_t i = 0; i < n; ++i) ASSERT_EQ(i == 0 || i == n - 1 ? 2.5 : -1, at(got, i)) << i;
    }
}

TEST(CudaElementwise, SumsInDouble) {
  MMFREE_NEEDS_GPU();
  for (DType type : {DType::f64, DType::f32, DType::bf16})
    for (int64_t n : kSizes) {
      const Tensor x = as_type(random_tensor({n}, DType::f64, 3), type), wide = as_f64(x);
      long double total = 0, squares = 0, size = 0;
      for (int64_t i = 0; i < n; ++i) {
        total += at(wide, i), size += std::abs(at(wide, i));
        squares += (long double)(at(wide, i)) * at(wide, i);
      }
      Tensor out = to_gpu(full({1}, DType::f64, kNaN));
      sum_of_squares(to_gpu(x), out);
      // All terms are added in f64, over fewer than 200 additions each.
      EXPECT_NEAR(double(squares), at(from_gpu(out), 0), 200 * epsilon_of(DType::f64) * double(squares)) << n;
      if (type == DType::bf16) continue;
      fill(out, kNaN);
      sum(to_gpu(x), 3, out);
      EXPECT_NEAR(3 * double(total), at(from_gpu(out), 0), 600 * epsilon_of(DType::f64) * double(size)) << n;
      fill(out, 7);
      sum(to_gpu(x), 3, out, -2);
      EXPECT_NEAR(3 * double(total) - 14, at(from_gpu(out), 0), 600 * epsilon_of(DType::f64) * (double(size) + 14));
    }
}

TEST(CudaElementwise, SumsOfManyBlocksAreExactForWholeNumbers) {
  MMFREE_NEEDS_GPU();
  const int64_t n = 5'000'001;  // more partial sums than the threads that add them
  Tensor x({n}, DType::f32), out = empty_on_gpu({1}, DType::f64);
  int64_t total = 0, squares = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t value = i * 7919 % 1001 - 300;
    x.mut<float>()[i] = float(value);
    total += value, squares += value * value;
  }
  const Tensor there = to_gpu(x);
  sum(there, 1, out);
  EXPECT_EQ(double(total), at(from_gpu(out), 0));
  sum_of_squares(there, out);
  EXPECT_EQ(double(squares), at(from_gpu(out), 0));
}

TEST(CudaElementwise, TwoSumsGiveTheSameBitsAndCarryNaN) {
  MMFREE_NEEDS_GPU();
  Tensor x = random_tensor({300'001}, DType::f32, 5), one = empty_on_gpu({1}, DType::f64),
         two = empty_on_gpu({1}, DType::f64);
  sum_of_squares(to_gpu(x), one);
  sum_of_squares(to_gpu(x), two);
  EXPECT_TRUE(same_bits(from_gpu(one), from_gpu(two)));
  set(x, 123'456, kNaN);
  sum_of_squares(to_gpu(x), one);
  EXPECT_TRUE(std::isnan(at(from_gpu(one), 0)));
}
