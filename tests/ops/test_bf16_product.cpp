// Products of f32 matrices whose operands are rounded to bf16: the kernel, and the same by rounded copies.
#include <gtest/gtest.h>

#include "core/cpu/bf16_product.h"
#include "core/ops/linear.h"
#include "tests/support/tensors.h"

namespace mmfree {
namespace {

constexpr Products kBf16 = Products::bf16;

double rounded(const Tensor& t, int64_t row, int64_t col) {
  return double(float(bf16(t.data<float>()[row * t.cols() + col])));
}

/// Both ways to compute alpha·op(a)·b + beta·c; the kernel's only where the machine has it.
std::vector<Tensor> both_ways(const Tensor& a, bool transpose_a, const Tensor& b, const Tensor& c, double alpha,
                              double beta) {
  Tensor copies = c.clone(), kernel = c.clone();
  matmul(a, transpose_a, b, false, copies, alpha, beta, Tensor(), kBf16);
  if (!cpu::has_bf16_product()) return {copies};
  cpu::bf16_product({a.raw(), b.raw(), kernel.raw_mut(), DType::f32, DType::f32, transpose_a, false, c.rows(), c.cols(),
                     b.rows(), a.cols(), b.cols(), alpha, beta, true, nullptr});
  return {copies, kernel};
}

/// k additions of f32 numbers, in any order, are off by at most k rounding errors of the sum of magnitudes.
void check(int64_t m, int64_t n, int64_t k, bool transpose_a, double beta) {
  const Tensor a = random_tensor(transpose_a ? Shape{k, m} : Shape{m, k}, DType::f32, 1),
               b = random_tensor({k, n}, DType::f32, 2);
  const Tensor c = beta == 0 ? full({m, n}, DType::f32, kNaN) : random_tensor({m, n}, DType::f32, 3);
  for (const Tensor& found : both_ways(a, transpose_a, b, c, 0.7, beta))
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) {
        double sum = 0, size = 0;
        for (int64_t t = 0; t < k; ++t) {
          const double term = (transpose_a ? rounded(a, t, i) : rounded(a, i, t)) * rounded(b, t, j);
          sum += term, size += std::abs(term);
        }
        const double old = beta == 0 ? 0 : beta * at(c, i * n + j);
        ASSERT_NEAR(0.7 * sum + old, at(found, i * n + j), double(k + 4) * 0x1p-24 * (size + std::abs(old)))
            << m << 'x' << n << 'x' << k << " transposed " << transpose_a << " at " << i << ',' << j;
      }
}

}  // namespace

TEST(Bf16Product, RoundsTheOperandsAndSumsInF32) {
  for (bool transpose_a : {false, true})
    for (double beta : {0.0, 1.0, -0.5}) {
      for (int64_t k : {1, 2, 3, 255, 256, 257, 600}) check(5, 17, k, transpose_a, beta);
      for (int64_t m : {1, 3, 4, 15, 16, 17, 257}) check(m, 33, 40, transpose_a, beta);
      for (int64_t n : {1, 16, 63, 64, 65, 127, 128, 129}) check(6, n, 31, transpose_a, beta);
    }
}

TEST(Bf16Product, GivesTheSameBitsForAnyThreads) {
  const Tensor a = random_tensor({300, 270}, DType::f32, 1), b = random_tensor({270, 400}, DType::f32, 2);
  expect_same_bits_for_any_threads([&] { return both_ways(a, false, b, Tensor::zeros({300, 400}, DType::f32), 1, 0); });
}

TEST(Bf16Product, ShowsWhatIsNotFinite) {
  Tensor a = random_tensor({5, 9}, DType::f32, 1);
  const Tensor b = random_tensor({9, 7}, DType::f32, 2);
  a.mut<float>()[2 * 9 + 8] = std::bit_cast<float>(0x7f800001u);  // a NaN whose upper half alone is an infinity
  for (const Tensor& c : both_ways(a, false, b, Tensor::zeros({5, 7}, DType::f32), 1, 0))
    for (int64_t i = 0; i < c.size(); ++i) EXPECT_EQ(i / 7 == 2, std::isnan(at(c, i))) << i;
}

TEST(Bf16Product, IsForF32OnTheCpu) {
  const Tensor a({2, 3}, DType::f64), b({3, 4}, DType::f64);
  Tensor c({2, 4}, DType::f64);
  expect_error<DTypeError>({"matmul", "bf16"}, [&] { matmul(a, false, b, false, c, 1, 0, Tensor(), kBf16); });
}

/// Gradients of a ternary projection: the weights are exact, so dx is off by the rounding of dy alone; in dw both
/// operands are rounded. A rounding to bf16 moves a value by at most its 2^-8th part, two by 2^-7 and a little; sums in
/// f32 add less than the last figure of the bounds.
TEST(Bf16Product, RoundsGradientsOfTernaryProjections) {
  const int64_t n = 70, o = 40, k = 50;
  WeightMatrix w{make_ternary(o, k, DType::f32), {}, kBf16};
  ternary_quantise(random_tensor({o, k}, DType::f32, 4, 0.05), w.ternary);
  const Tensor dy = random_tensor({n, o}, DType::f32, 5), values = random_tensor({n, k}, DType::f32, 6, 40);
  Tensor codes({n, k}, DType::i8), dense({o, k}, DType::f32);
  for (int64_t i = 0; i < n * k; ++i) codes.mut<int8_t>()[i] = int8_t(std::clamp(at(values, i), -127.0, 127.0));
  ternary_dequantise(w.ternary, dense);
  const QuantTensor x(codes, full({n}, DType::f32, 0.013), DType::f32);
  Tensor dx({n, k}, DType::f32), dw({o, k}, DType::f32);
  linear_dx(dy, w, dx, 0);
  linear_dw(dy, x, dw, 0, w.backward);
  double largest = 0;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < k; ++j) {
      double sum = 0, size = 0;
      for (int64_t t = 0; t < o; ++t) {
        const double term = at(dy, i * o + t) * at(dense, t * k + j);
        sum += term, size += std::abs(term);
      }
      ASSERT_NEAR(sum, at(dx, i * k + j), 0x1.01p-8 * size);
      largest = std::max(largest, std::abs(sum - at(dx, i * k + j)) / (size + 1e-9));
    }
  EXPECT_GT(largest, 0x1p-13) << "nothing was rounded";
  for (int64_t i = 0; i < o; ++i)
    for (int64_t j = 0; j < k; ++j) {
      double sum = 0, size = 0;
      for (int64_t t = 0; t < n; ++t) {
        const double term = at(dy, t * o + i) * double(codes.data<int8_t>()[t * k + j]) * double(0.013f);
        sum += term, size += std::abs(term);
      }
      ASSERT_NEAR(sum, at(dw, i * k + j), 0x1.03p-7 * size);
    }
}

}  // namespace mmfree
