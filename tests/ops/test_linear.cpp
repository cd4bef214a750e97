#include <gtest/gtest.h>

#include "core/ops/linear.h"
#include "tests/support/composed.h"

using namespace mmfree;

namespace {

Tensor random_codes(int64_t n, int64_t k) {
  Tensor q({n, k}, DType::i8);
  const Tensor ids = random_ids(n * k, 255, 6);
  for (int64_t i = 0; i < q.size(); ++i) q.mut<int8_t>()[i] = int8_t(ids.data<int32_t>()[i] - 127);
  return q;
}

struct Problem {
  QuantTensor x;
  WeightMatrix w;
  Tensor x_plain, w_plain;  ///< what x and w stand for, f64
  Tensor dy;
};

Problem make_problem(int64_t n, int64_t o, int64_t k, DType t, bool ternary) {
  Problem p;
  const Tensor latent = random_tensor({o, k}, t, 1, 0.02);
  p.dy = random_tensor({n, o}, t, 2);
  if (ternary) {
    p.x = QuantTensor(random_codes(n, k), random_tensor({n}, t, 3, 0.002, 0.01), t);
    p.w.ternary = make_ternary(o, k, t);
    ternary_quantise(latent, p.w.ternary);
    Tensor dense({o, k}, t);
    ternary_dequantise(p.w.ternary, dense);
    p.x_plain = composed::dequantised(p.x.values, p.x.scale), p.w_plain = as_f64(dense);
  } else {
    p.x = random_tensor({n, k}, t, 3), p.w.plain = latent;
    p.x_plain = as_f64(p.x.values), p.w_plain = as_f64(latent);
  }
  return p;
}

Tensor forward(const QuantTensor& x, const WeightMatrix& w) {
  Tensor y({x.values.dim(0), w.rows()}, x.compute);
  linear(x, w, y);
  return y;
}

Tensor absolute(const Tensor& t) {
  Tensor y = as_f64(t).clone();
  for (int64_t i = 0; i < y.size(); ++i) set(y, i, std::abs(at(y, i)));
  return y;
}

/// Each element may err by (8 + terms/8) roundings, at least eight sums run side by side, of the sum of its terms'
/// absolute values.
void expect_product(const Tensor& got, const Tensor& a, bool transpose_a, const Tensor& b, bool transpose_b) {
  const Tensor expected = composed::product(a, transpose_a, b, transpose_b);
  const Tensor size = composed::product(absolute(a), transpose_a, absolute(b), transpose_b);
  const double bound = (8 + double(a.dim(!transpose_a)) / 8) * epsilon_of(got.dtype());
  ASSERT_EQ(expected.shape(), got.shape());
  for (int64_t i = 0; i < got.size(); ++i) ASSERT_NEAR(at(expected, i), at(got, i), bound * at(size, i)) << i;
}

}  // namespace

TEST(Linear, MatchesItsComposedTwin) {
  for (DType t : {DType::f64, DType::f32})
    for (bool ternary : {false, true})
      for (int64_t k : kOddColumns)
        for (auto [n, o] : {std::pair<int64_t, int64_t>{1, 1}, {1, 31}, {5, 33}, {33, 3}}) {
          SCOPED_TRACE(concat(name_of(t), ternary ? " ternary " : " plain ", n, 'x', o, 'x', k));
          const Problem p = make_problem(n, o, k, t, ternary);
          expect_product(forward(p.x, p.w), p.x_plain, false, p.w_plain, true);
          Tensor dx({n, k}, t), dw({o, k}, t);
          linear_dx(p.dy, p.w, dx, 0);
          linear_dw(p.dy, p.x, dw, 0);
          expect_product(dx, p.dy, false, p.w_plain, false);
          expect_product(dw, p.dy, true, p.x_plain, false);
        }
}

TEST(Linear, BackwardHonoursBeta) {
  for (DType t : {DType::f64, DType::f32})
    for (bool ternary : {false, true}) {
      const Problem p = make_problem(5, 33, 127, t, ternary);
      expect_beta_semantics({5, 127}, t, [&](Tensor& dx, double beta) { linear_dx(p.dy, p.w, dx, beta); });
      expect_beta_semantics({33, 127}, t, [&](Tensor& dw, double beta) { linear_dw(p.dy, p.x, dw, beta); });
    }
}

TEST(Linear, GivesTheSameBitsForAnyNumberOfThreads) {
  for (bool ternary : {false, true}) {
    const Problem p = make_problem(300, 301, 127, DType::f32, ternary);
    expect_same_bits_for_any_threads([&] {
      Tensor dx({300, 127}, DType::f32), dw({301, 127}, DType::f32);
      linear_dx(p.dy, p.w, dx, 0);
      linear_dw(p.dy, p.x, dw, 0);
      return std::vector<Tensor>{forward(p.x, p.w), dx, dw};
    });
  }
}

TEST(Linear, RowsDoNotDependOnEachOther) {
  for (bool ternary : {false, true})
    for (int64_t k : kOddColumns) {
      const Problem p = make_problem(137, 35, k, DType::f32, ternary);
      const Tensor whole = forward(p.x, p.w);
      for (auto [begin, end] : {std::pair<int64_t, int64_t>{0, 1}, {1, 2}, {64, 71}, {127, 130}, {136, 137}}) {
        const Tensor values = p.x.values.slice(begin, end);
        const QuantTensor view =
            ternary ? QuantTensor(values, p.x.scale.slice(begin, end), DType::f32) : QuantTensor(values);
        const QuantTensor copy = ternary ? QuantTensor(values.clone(), p.x.scale.slice(begin, end).clone(), DType::f32)
                                         : QuantTensor(values.clone());
        EXPECT_TRUE(same_bits(whole.slice(begin, end), forward(view, p.w))) << k << " columns, row " << begin;
        EXPECT_TRUE(same_bits(whole.slice(begin, end), forward(copy, p.w))) << k << " columns, row " << begin;
      }
    }
}

TEST(Linear, NaNReachesItsRow) {
  for (bool ternary : {false, true}) {
    Problem p = make_problem(3, 5, 33, DType::f32, ternary);
    set(ternary ? p.x.scale : p.x.values, ternary ? 1 : 33 + 32, kNaN);
    const Tensor y = forward(p.x, p.w);
    EXPECT_EQ(5, count_non_finite(y.slice(1, 2)));
    EXPECT_EQ(5, count_non_finite(y));
  }
  Tensor latent = random_tensor({5, 33}, DType::f32, 1);
  set(latent, 40, kNaN);
  WeightMatrix w;
  w.ternary = make_ternary(5, 33, DType::f32);
  ternary_quantise(latent, w.ternary);
  EXPECT_EQ(15, count_non_finite(forward(make_problem(3, 5, 33, DType::f32, true).x, w)));
}

TEST(Linear, Bf16OutputsOfF32OperandsAreRoundedOnce) {
  const int64_t n = 5, o = 33, k = 127;
  const Problem p = make_problem(n, o, k, DType::f32, false);
  const Tensor dy = as_type(p.dy, DType::bf16), dy32 = as_type(dy, DType::f32);
  Tensor y({n, o}, DType::bf16), dx({n, k}, DType::bf16), dw({o, k}, DType::f32);
  Tensor dx32({n, k}, DType::f32), dw32({o, k}, DType::f32);
  linear(QuantTensor(p.x.values, DType::bf16), p.w, y);
  EXPECT_TRUE(same_bits(as_type(forward(p.x, p.w), DType::bf16), y));
  linear_dx(dy, p.w, dx, 0);
  linear_dx(dy32, p.w, dx32, 0);
  EXPECT_TRUE(same_bits(as_type(dx32, DType::bf16), dx));
  dx32 = as_type(dx, DType::f32);
  linear_dx(dy, p.w, dx, 1);
  linear_dx(dy32, p.w, dx32, 1);
  EXPECT_TRUE(same_bits(as_type(dx32, DType::bf16), dx)) << "beta";
  linear_dw(dy, p.x, dw, 0);
  linear_dw(dy32, p.x, dw32, 0);
  EXPECT_TRUE(same_bits(dw32, dw));
}

TEST(Linear, RejectsWrongArguments) {
  const Problem plain = make_problem(2, 3, 5, DType::f32, false), ternary = make_problem(2, 3, 5, DType::f32, true);
  const Problem narrow = make_problem(2, 3, 4, DType::f32, false);
  Tensor dx({2, 4}, DType::f32), dw({3, 4}, DType::f32);
  expect_error<DTypeError>({"linear", "plain activations", "ternary"}, [&] { forward(plain.x, ternary.w); });
  expect_error<DTypeError>({"linear", "quantised activations", "plain"}, [&] { forward(ternary.x, plain.w); });
  expect_error<ShapeError>({"linear", "[2, 4]", "[3, 5]"}, [&] { forward(narrow.x, plain.w); });
  for (const Problem& p : {plain, ternary}) {
    EXPECT_THROW(linear_dx(p.dy, p.w, dx, 0), ShapeError);
    EXPECT_THROW(linear_dw(p.dy, p.x, dw, 0), ShapeError);
    EXPECT_THROW(linear_dx(as_f64(p.dy), p.w, dx, 0), DTypeError);
  }
}
