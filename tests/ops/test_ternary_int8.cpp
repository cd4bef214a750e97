// Backward products of ternary matrices in 8 bits, against their formulas and against products without rounding.
#include <gtest/gtest.h>

#include "core/ops/ternary_int8.h"
#include "core/quantize.h"
#include "tests/support/tensors.h"

namespace mmfree {
namespace {

struct Problem {
  Tensor dy, q, step;
  TernaryTensor w;
  int64_t n, o, k;
};

Problem make_problem(int64_t n, int64_t o, int64_t k, DType t, double size = 1e-3) {
  const auto seed = uint32_t(n * 131 + o * 17 + k);
  Problem p{
      random_tensor({n, o}, t, seed, size), Tensor({n, k}, DType::i8), Tensor({n}, t), make_ternary(o, k, t), n, o, k};
  ternary_quantise(random_tensor({o, k}, t, seed + 1, 0.05), p.w);
  std::mt19937 rng(seed);
  for (int64_t i = 0; i < n * k; ++i) p.q.mut<int8_t>()[i] = int8_t(int(rng() % 255) - 127);
  for (int64_t i = 0; i < n; ++i) set(p.step, i, 0.01 + 0.001 * double(i % 17));
  return p;
}

/// A value in 8 bits: step and code.
template <class T>
struct Rounded {
  T step, inverse;
  explicit Rounded(T absmax)
      : step(absmax < T(1e-30) ? T(0) : absmax / T(127)), inverse(step ? T(127) / absmax : T(0)) {}
  int64_t code(T v) const { return std::llround(double(v * inverse)); }
};

std::vector<int64_t> weights_of(const TernaryTensor& w) {
  Tensor dense({w.rows(), w.cols}, w.scale.dtype());
  ternary_dequantise(w, dense, false);
  std::vector<int64_t> out;
  for (int64_t i = 0; i < dense.size(); ++i) out.push_back(int64_t(at(dense, i)));
  return out;
}

/// dx by the formula, one element after the other.
template <class T>
Tensor dx_of(const Problem& p) {
  const std::vector<int64_t> weights = weights_of(p.w);
  const T *dy = p.dy.data<T>(), scale = *p.w.scale.data<T>();
  Tensor dx({p.n, p.k}, dtype_of<T>());
  for (int64_t n = 0; n < p.n; ++n) {
    T absmax = 0;
    for (int64_t o = 0; o < p.o; ++o) absmax = std::max(absmax, std::abs(dy[n * p.o + o]));
    const Rounded<T> rounded(absmax);
    for (int64_t k = 0; k < p.k; ++k) {
      int64_t sum = 0;
      for (int64_t o = 0; o < p.o; ++o) sum += rounded.code(dy[n * p.o + o]) * weights[size_t(o * p.k + k)];
      dx.mut<T>()[n * p.k + k] = T(sum) * (rounded.step * scale);
    }
  }
  return dx;
}

template <class T>
Tensor dw_of(const Problem& p) {
  const T *dy = p.dy.data<T>(), *step = p.step.data<T>();
  Tensor dw = Tensor::zeros({p.o, p.k}, dtype_of<T>());
  for (int64_t begin = 0; begin < p.n; begin += kGradientBlock)
    for (int64_t o = 0; o < p.o; ++o) {
      const int64_t end = std::min(p.n, begin + kGradientBlock);
      T absmax = 0;
      for (int64_t n = begin; n < end; ++n) absmax = std::max(absmax, std::abs(dy[n * p.o + o] * step[n]));
      const Rounded<T> rounded(absmax);
      for (int64_t k = 0; k < p.k; ++k) {
        int64_t sum = 0;
        for (int64_t n = begin; n < end; ++n)
          sum += rounded.code(dy[n * p.o + o] * step[n]) * p.q.data<int8_t>()[n * p.k + k];
        dw.mut<T>()[o * p.k + k] += T(sum) * rounded.step;
      }
    }
  return dw;
}

Tensor run_dx(const Problem& p) {
  Tensor dx({p.n, p.k}, p.dy.dtype());
  ternary_dx_int8(p.dy, p.w, dx, 0);
  return dx;
}
Tensor run_dw(const Problem& p) {
  Tensor dw({p.o, p.k}, p.dy.dtype());
  ternary_dw_int8(p.dy, p.q, p.step, dw, 0);
  return dw;
}

template <class T>
void expect_formulas(int64_t n, int64_t o, int64_t k) {
  const Problem p = make_problem(n, o, k, dtype_of<T>());
  ASSERT_TRUE(same_bits(dx_of<T>(p), run_dx(p))) << n << 'x' << o << 'x' << k;
  ASSERT_TRUE(same_bits(dw_of<T>(p), run_dw(p))) << n << 'x' << o << 'x' << k;
}

template <class T>
void expect_formulas_for_odd_sizes() {
  for (int64_t n : {1, 3, 128, 131})
    for (int64_t o : {1, 15, 17, 34})
      for (int64_t k : {1, 33, 66}) expect_formulas<T>(n, o, k);
  for (int64_t o : {129, 515}) expect_formulas<T>(10, o, 33);
  for (int64_t k : {127, 128, 129, 300}) expect_formulas<T>(10, 19, k);
  expect_formulas<T>(259, 5, 7);
}

}  // namespace

TEST(TernaryInt8, FollowsTheFormulasToTheBit) {
  expect_formulas_for_odd_sizes<float>();
  expect_formulas_for_odd_sizes<double>();
}

TEST(TernaryInt8, AddsToWhatIsThere) {
  for (DType t : {DType::f32, DType::f64}) {
    const Problem p = make_problem(140, 21, 37, t);
    expect_beta_semantics({p.n, p.k}, t, [&](Tensor& dx, double beta) { ternary_dx_int8(p.dy, p.w, dx, beta); });
    expect_beta_semantics({p.o, p.k}, t,
                          [&](Tensor& dw, double beta) { ternary_dw_int8(p.dy, p.q, p.step, dw, beta); });
  }
}

TEST(TernaryInt8, GivesTheSameBitsForAnyThreads) {
  const Problem p = make_problem(300, 200, 300, DType::f32);
  expect_same_bits_for_any_threads([&] { return std::vector<Tensor>{run_dx(p), run_dw(p)}; });
}

/// Rounding moves a gradient by at most half a step, so each sum by at most half a step times the sum of the other
/// side's magnitudes. Sums in f32 on both sides add a thousandth of that here.
TEST(TernaryInt8, StaysWithinHalfAStepOfProductsWithoutRounding) {
  const Problem p = make_problem(300, 96, 130, DType::f64);
  Tensor dx({p.n, p.k}, DType::f64), dw({p.o, p.k}, DType::f64);
  ternary_linear_dx(p.dy, p.w, dx, 0);
  ternary_linear_dw(p.dy, p.q, p.step, dw, 0);
  const Tensor dx8 = run_dx(p), dw8 = run_dw(p);
  const std::vector<int64_t> weights = weights_of(p.w);
  double largest = 0, error = 0;
  for (int64_t n = 0; n < p.n; ++n) {
    double absmax = 0;
    for (int64_t o = 0; o < p.o; ++o) absmax = std::max(absmax, std::abs(at(p.dy, n * p.o + o)));
    for (int64_t k = 0; k < p.k; ++k) {
      double bound = 0;
      for (int64_t o = 0; o < p.o; ++o) bound += std::abs(double(weights[size_t(o * p.k + k)]));
      bound *= 0.5001 * absmax / 127 * at(p.w.scale, 0);
      ASSERT_NEAR(at(dx, n * p.k + k), at(dx8, n * p.k + k), bound);
      largest = std::max(largest, std::abs(at(dx, n * p.k + k)));
      error = std::max(error, std::abs(at(dx, n * p.k + k) - at(dx8, n * p.k + k)));
    }
  }
  EXPECT_LT(error, 0.02 * largest);
  EXPECT_GT(error, 1e-5 * largest) << "nothing was rounded";
  for (int64_t o = 0; o < p.o; ++o)
    for (int64_t k = 0; k < p.k; ++k) {
      double bound = 0;
      for (int64_t begin = 0; begin < p.n; begin += kGradientBlock) {
        double absmax = 0, codes = 0;
        for (int64_t n = begin; n < std::min(p.n, begin + kGradientBlock); ++n) {
          absmax = std::max(absmax, std::abs(at(p.dy, n * p.o + o) * at(p.step, n)));
          codes += std::abs(double(p.q.data<int8_t>()[n * p.k + k]));
        }
        bound += 0.5001 * absmax / 127 * codes;
      }
      ASSERT_NEAR(at(dw, o * p.k + k), at(dw8, o * p.k + k), bound);
    }
}

TEST(TernaryInt8, KeepsSmallGradientsAndZeros) {
  expect_formulas<float>(5, 7, 9);
  for (double size : {1e-12, 1e-25, 1e-35, 0.0}) {
    const Problem p = make_problem(5, 40, 33, DType::f32, size);
    const Tensor dx = run_dx(p), dw = run_dw(p);
    EXPECT_EQ(0, count_non_finite(dx) + count_non_finite(dw)) << size;
    EXPECT_EQ(size > 1e-30, sum_of_squares(dx) > 0 || at(dx, 0) != 0) << size;
    if (size > 1e-30) EXPECT_TRUE(same_bits(dx_of<float>(p), dx)) << size;
  }
}

/// What is not finite stays visible in its own row of dx and in its own channel of dw, so that the update is skipped.
TEST(TernaryInt8, ShowsWhatIsNotFinite) {
  for (double bad : {kNaN, kInfinity, -kInfinity})
    for (int64_t row : {0, 1, 130})
      for (DType t : {DType::f32, DType::f64}) {
        Problem p = make_problem(140, 20, 40, t);
        set(p.dy, row * p.o + 3, bad);
        const Tensor dx = run_dx(p), dw = run_dw(p);
        for (int64_t n = 0; n < p.n; ++n) EXPECT_EQ(n != row, std::isfinite(at(dx, n * p.k))) << n;
        for (int64_t o = 0; o < p.o; ++o) EXPECT_EQ(o != 3, std::isfinite(at(dw, o * p.k))) << o;
      }
}

TEST(TernaryInt8, RefusesWhatDoesNotFit) {
  const Problem p = make_problem(4, 5, 6, DType::f32);
  Tensor dx({4, 6}, DType::f32), dw({5, 6}, DType::f32), wrong({4, 5}, DType::f32), wide({4, 6}, DType::f64);
  expect_error<ShapeError>({"ternary_dx_int8", "dx"}, [&] { ternary_dx_int8(p.dy, p.w, wrong, 0); });
  expect_error<ShapeError>({"ternary_dx_int8", "dy"}, [&] { ternary_dx_int8(dx, p.w, dx, 0); });
  expect_error<DTypeError>({"ternary_dx_int8", "dx"}, [&] { ternary_dx_int8(p.dy, p.w, wide, 0); });
  expect_error<ShapeError>({"ternary_dw_int8", "dw"}, [&] { ternary_dw_int8(p.dy, p.q, p.step, wrong, 0); });
  expect_error<ShapeError>({"ternary_dw_int8"}, [&] { ternary_dw_int8(dw, p.q, p.step, dw, 0); });
  expect_error<DTypeError>({"ternary_dw_int8", "dy"}, [&] { ternary_dw_int8(p.q, p.q, p.step, dw, 0); });
}

}  // namespace mmfree
