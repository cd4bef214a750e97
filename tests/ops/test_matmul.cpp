#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <vector>

#include "core/ops/matmul.h"
#include "tests/support/child.h"
#include "tests/support/signal_storm.h"
#include "tests/support/tensors.h"

using namespace mmfree;

namespace {

constexpr int64_t kSizes[] = {0, 1, 3, 31, 33, 127, 128, 129, 1000};

template <class T>
Tensor random_tensor(Shape shape, uint32_t seed, double spread = 1) {
  std::mt19937 rng(seed);
  std::uniform_real_distribution<double> uniform(-spread, spread);
  std::vector<T> v(size_t(shape.size()));
  for (T& x : v) x = T(float(uniform(rng)));
  return Tensor::from(shape, v.data());
}

/// Small integers: every product and partial sum is exact in any floating type, so results must match exactly.
template <class T>
Tensor integer_tensor(Shape shape, uint32_t seed) {
  std::mt19937 rng(seed);
  std::vector<T> v(size_t(shape.size()));
  for (T& x : v) x = T(float(int(rng() % 7) - 3));
  return Tensor::from(shape, v.data());
}

/// alpha * op(a) * op(b) + beta * c in f64, element by element.
template <class T>
double reference(const Tensor& a, bool ta, const Tensor& b, bool tb, int64_t i, int64_t j) {
  const int64_t k = ta ? a.rows() : a.cols();
  double sum = 0;
  for (int64_t t = 0; t < k; ++t)
    sum += double(a.data<T>()[ta ? t * a.cols() + i : i * a.cols() + t]) *
           double(b.data<T>()[tb ? j * b.cols() + t : t * b.cols() + j]);
  return sum;
}

template <class In, class Out>
void check_matmul(int64_t m, int64_t n, int64_t k, bool ta, bool tb, double alpha, double beta) {
  const Tensor a = integer_tensor<In>(ta ? Shape{k, m} : Shape{m, k}, 1);
  const Tensor b = integer_tensor<In>(tb ? Shape{n, k} : Shape{k, n}, 2);
  const Tensor c0 = integer_tensor<Out>({m, n}, 3);
  Tensor c = c0.clone();
  matmul(a, ta, b, tb, c, alpha, beta);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      const double before = beta == 0 ? 0 : beta * double(c0.data<Out>()[i * n + j]);
      const Out want = Out(float(alpha * reference<In>(a, ta, b, tb, i, j) + before));
      ASSERT_EQ(double(want), double(c.data<Out>()[i * n + j]))
          << m << 'x' << n << 'x' << k << " ta " << ta << " tb " << tb << " at " << i << ',' << j;
    }
}

void with_threads(int threads, auto&& body) {
  const int saved = omp_get_max_threads();
  omp_set_num_threads(threads);
  body();
  omp_set_num_threads(saved);
}

}  // namespace

TEST(Matmul, IsExactOnIntegersForEveryTransposeAndOddSize) {
  for (int64_t m : kSizes)
    for (int64_t n : {int64_t(0), int64_t(1), int64_t(33), int64_t(129)})
      for (int64_t k : {int64_t(0), int64_t(3), int64_t(31), int64_t(128)})
        for (int flags = 0; flags < 4; ++flags) {
          check_matmul<float, float>(m, n, k, flags & 1, flags & 2, 1, 0);
          check_matmul<double, double>(m, n, k, flags & 1, flags & 2, 0.5, 2);
        }
  for (int64_t k : kSizes) {
    check_matmul<float, float>(33, 31, k, false, true, 0.5, 2);
    check_matmul<bf16, float>(33, 31, k, true, false, 1, 1);
    check_matmul<bf16, bf16>(33, 31, k, false, true, 1, 0.5);
    check_matmul<int8_t, int32_t>(33, 31, k, false, true, 1, 0);
  }
}

TEST(Matmul, SpansSeveralTiles) {
  check_matmul<float, float>(1030, 1100, 40, false, false, 1, 0);
  check_matmul<float, float>(1030, 1100, 40, true, true, 1, 1);
}

TEST(Matmul, RoundsF32WithinTheBoundOfItsLength) {
  const int64_t m = 67, n = 70, k = 1000;
  const Tensor a = random_tensor<float>({m, k}, 4), b = random_tensor<float>({n, k}, 5);
  Tensor c({m, n}, DType::f32);
  matmul(a, false, b, true, c);
  // |error| <= k * 2^-24 * sum |a||b| (Higham); the terms are below 1.
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j)
      ASSERT_NEAR(reference<float>(a, false, b, true, i, j), double(c.data<float>()[i * n + j]),
                  double(k) * 0x1p-24 * double(k) / 4);
}

TEST(Matmul, DoesNotReadCWhenBetaIsZero) {
  const Tensor a = integer_tensor<float>({5, 7}, 1), b = integer_tensor<float>({7, 9}, 2);
  Tensor c({5, 9}, DType::f32);
  for (int i = 0; i < 45; ++i) c.mut<float>()[i] = NAN;
  matmul(a, false, b, false, c);
  for (int i = 0; i < 45; ++i) ASSERT_TRUE(std::isfinite(c.data<float>()[i]));
  const Tensor none_a({5, 0}, DType::f32), none_b({0, 9}, DType::f32);
  for (int i = 0; i < 45; ++i) c.mut<float>()[i] = NAN;
  matmul(none_a, false, none_b, false, c);
  for (int i = 0; i < 45; ++i) ASSERT_EQ(0.f, c.data<float>()[i]);
}

TEST(Matmul, GivesTheSameBitsForAnyNumberOfThreads) {
  for (auto [m, n] : {std::pair<int64_t, int64_t>{1030, 700}, {5, 3}, {200, 2000}}) {
    const Tensor a = random_tensor<float>({m, 1000}, 6), b = random_tensor<float>({n, 1000}, 7);
    Tensor first({m, n}, DType::f32), linear_first({m, n}, DType::f32);
    with_threads(1, [&] { matmul(a, false, b, true, first), linear_forward(a, b, linear_first); });
    for (int threads : {2, 3, 5}) {
      Tensor c({m, n}, DType::f32), y({m, n}, DType::f32);
      with_threads(threads, [&] { matmul(a, false, b, true, c), linear_forward(a, b, y); });
      ASSERT_EQ(0, std::memcmp(first.raw(), c.raw(), size_t(c.bytes()))) << threads;
      ASSERT_EQ(0, std::memcmp(linear_first.raw(), y.raw(), size_t(y.bytes()))) << threads;
    }
  }
}

TEST(Matmul, SignalsFindTheStackPointerOnTheStack) {
  const Tensor a = random_tensor<float>({64, 512}, 12), b = random_tensor<float>({512, 64}, 13);
  Tensor quiet({64, 64}, DType::f32), c({64, 64}, DType::f32);
  matmul(a, false, b, false, quiet);
  const SignalStorm storm;
  while (storm.arrived() < 2000) {
    matmul(a, false, b, false, c);
    ASSERT_EQ(0, storm.elsewhere());
    ASSERT_EQ(0, std::memcmp(quiet.raw(), c.raw(), size_t(c.bytes())));
  }
}

TEST(Matmul, SaysThatItHadNoMemory) {
  if (kHasItsOwnAllocator) GTEST_SKIP() << "a sanitizer's memory cannot be limited";
  const Tensor a = random_tensor<float>({700, 900}, 14), b = random_tensor<float>({900, 1024}, 15);
  Tensor c({700, 1024}, DType::f32), d({600, 1024}, DType::f32);
  const Ended ended = in_child(
      [&] {
        omp_set_num_threads(1);
        matmul(a.slice(0, 600), false, b, false, d);  // oneDNN makes its code
        size_t pages = 0;
        std::ifstream("/proc/self/statm") >> pages;
        const rlim_t bytes = pages * size_t(sysconf(_SC_PAGESIZE));
        const rlimit limit{bytes, bytes};
        setrlimit(RLIMIT_AS, &limit);
        volatile uintptr_t taken = 1;  // or the compiler leaves the calls out
        for (size_t block = 1 << 20; block >= 1 << 16; block /= 2) do
            taken = uintptr_t(std::malloc(block));
          while (taken != 0);
        matmul(a, false, b, false, c);
      },
      60);
  EXPECT_EQ(ended.status, 1) << ended.describe();
  EXPECT_EQ(ended.err, "mmfree: matmul: out of memory for a product of [700, 900] and [900, 1024]\n");
}

TEST(Matmul, RejectsWrongShapesAndDtypes) {
  const Tensor a({2, 3}, DType::f32), b({4, 5}, DType::f32), d({3, 5}, DType::f64);
  Tensor c({2, 5}, DType::f32);
  EXPECT_THROW(matmul(a, false, b, false, c), ShapeError);
  EXPECT_THROW(matmul(a, false, d, false, c), DTypeError);
  EXPECT_THROW(linear_forward(a, b, c), ShapeError);
  EXPECT_THROW(linear_forward(Tensor(), b, c), Error);
  const Tensor q({2, 3}, DType::i8), w({3, 5}, DType::i8);
  Tensor sums({2, 5}, DType::i32);
  EXPECT_THROW(matmul(q, false, w, false, sums, 2), DTypeError);
  const int64_t most = (int64_t(1) << 17) - 1;  // (-128)² · 2^17 overflows an i32
  Tensor one({1, 1}, DType::i32);
  Tensor row({1, most}, DType::i8), long_row({1, most + 1}, DType::i8);
  std::fill_n(row.mut<int8_t>(), most, int8_t(-128));
  matmul(row, false, row, true, one);
  EXPECT_EQ(int32_t(most * 16384), *one.data<int32_t>());
  expect_error<ShapeError>({"matmul", "131072", "overflow"}, [&] { matmul(long_row, false, long_row, true, one); });
}

template <class T>
class LinearForward : public testing::Test {};
using Floats = testing::Types<float, double>;
TYPED_TEST_SUITE(LinearForward, Floats);

TYPED_TEST(LinearForward, IsExactOnIntegers) {
  using T = TypeParam;
  for (int64_t k : kSizes)
    for (int64_t n : {0, 1, 5, 33, 129})
      for (int64_t o : {0, 1, 2, 31, 97}) {
        const Tensor x = integer_tensor<T>({n, k}, 8), w = integer_tensor<T>({o, k}, 9);
        Tensor y({n, o}, dtype_of<T>());
        linear_forward(x, w, y);
        for (int64_t i = 0; i < n; ++i)
          for (int64_t j = 0; j < o; ++j)
            ASSERT_EQ(reference<T>(x, false, w, true, i, j), double(y.template data<T>()[i * o + j]));
      }
}

TYPED_TEST(LinearForward, RowsDoNotDependOnTheirNumber) {
  using T = TypeParam;
  for (int64_t k : {1, 7, 100, 257}) {
    const Tensor x = random_tensor<T>({70, k}, 10), w = random_tensor<T>({53, k}, 11);
    Tensor all({70, 53}, dtype_of<T>());
    linear_forward(x, w, all);
    for (int64_t n = 1; n <= 70; ++n) {
      Tensor y({n, 53}, dtype_of<T>()), last({1, 53}, dtype_of<T>());
      linear_forward(x.slice(0, n), w, y);
      linear_forward(x.slice(n - 1, n), w, last);
      ASSERT_EQ(0, std::memcmp(all.raw(), y.raw(), size_t(y.bytes()))) << n;
      ASSERT_EQ(0, std::memcmp(all.slice(n - 1, n).raw(), last.raw(), size_t(last.bytes()))) << n;
    }
  }
}
