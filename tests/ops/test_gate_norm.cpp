#include <gtest/gtest.h>

#include "core/ops/gate_norm.h"
#include "tests/support/composed.h"

using namespace mmfree;

namespace {

constexpr double kEps = 1e-6;

struct Problem {
  Tensor a, b, weight, dy;
};

Problem make_problem(int64_t n, int64_t d, DType t, bool weight) {
  return {random_tensor({n, d}, t, 1), random_tensor({n, d}, t, 2, 3),
          weight ? random_tensor({d}, t, 3, 0.5, 1) : Tensor(), random_tensor({n, d}, t, 4)};
}

struct Outputs {
  Tensor y, r;
};

Outputs forward(const Tensor& a, const Tensor& b, const Tensor& weight) {
  Outputs o{Tensor(a.shape(), a.dtype()), Tensor({a.dim(0)}, a.dtype())};
  gate_norm(a, b, weight, kEps, o.y, o.r);
  return o;
}

std::vector<Tensor> backward(const Problem& p) {
  const Outputs o = forward(p.a, p.b, p.weight);
  const DType t = p.a.dtype();
  Tensor da(p.a.shape(), t), db(p.a.shape(), t), dweight = p.weight.defined() ? Tensor(p.weight.shape(), t) : Tensor();
  gate_norm_backward(p.a, p.b, p.weight, o.r, p.dy, da, 0, db, 0, dweight, 0);
  std::vector<Tensor> all{da, db};
  if (dweight.defined()) all.push_back(dweight);
  return all;
}

/// Lane sums of D/16 squares, an exponential good to 2 eps, and a few products.
double bound(int64_t d, DType t) { return (double(d) / 16 + 24) * epsilon_of(t); }

}  // namespace

TEST(GateNorm, MatchesItsComposedTwin) {
  for (DType t : {DType::f64, DType::f32})
    for (int64_t d : kOddColumns)
      for (int64_t n : {1, 18})
        for (bool weight : {false, true}) {
          const Problem p = make_problem(n, d, t, weight);
          EXPECT_LE(relative_error(forward(p.a, p.b, p.weight).y, composed::gate_norm(p.a, p.b, p.weight, kEps)),
                    bound(d, t))
              << name_of(t) << ' ' << n << 'x' << d << " weight " << weight;
        }
}

TEST(GateNorm, GradientsInSinglePrecisionFollowThoseInDouble) {
  for (int64_t d : kOddColumns)
    for (bool weight : {false, true}) {
      if (weight && d == 1) continue;  // da is the difference of nearly equal numbers
      const Problem p = make_problem(70, d, DType::f32, weight);
      const auto g = backward(p);
      const auto g64 = backward({as_f64(p.a), as_f64(p.b), as_type(p.weight, DType::f64), as_f64(p.dy)});
      for (size_t i = 0; i < g.size(); ++i)
        EXPECT_LE(relative_error(g[i], g64[i]), 4 * bound(d, DType::f32)) << d << " columns, gradient " << i;
    }
}

TEST(GateNorm, BackwardHonoursBeta) {
  for (DType t : {DType::f64, DType::f32})
    for (bool weight : {false, true}) {
      const Problem p = make_problem(70, 33, t, weight);
      const Tensor r = forward(p.a, p.b, p.weight).r;
      Tensor none;
      expect_beta_semantics({70, 33}, t, [&](Tensor& da, double beta) {
        gate_norm_backward(p.a, p.b, p.weight, r, p.dy, da, beta, none, 0, none, 0);
      });
      expect_beta_semantics({70, 33}, t, [&](Tensor& db, double beta) {
        gate_norm_backward(p.a, p.b, p.weight, r, p.dy, none, 0, db, beta, none, 0);
      });
      if (weight)
        expect_beta_semantics({33}, t, [&](Tensor& dweight, double beta) {
          gate_norm_backward(p.a, p.b, p.weight, r, p.dy, none, 0, none, 0, dweight, beta);
        });
    }
}

TEST(GateNorm, GivesTheSameBitsForAnyNumberOfThreads) {
  for (bool weight : {false, true}) {
    const Problem p = make_problem(300, 127, DType::f32, weight);
    expect_same_bits_for_any_threads([&] {
      std::vector<Tensor> all = backward(p);
      all.push_back(forward(p.a, p.b, p.weight).y);
      return all;
    });
  }
}

TEST(GateNorm, RowsDoNotDependOnEachOther) {
  for (int64_t d : kOddColumns)
    for (bool weight : {false, true}) {
      const Problem p = make_problem(37, d, DType::f32, weight);
      const Tensor whole = forward(p.a, p.b, p.weight).y;
      for (int64_t n : {0, 1, 16, 36}) {
        const Tensor a = p.a.slice(n, n + 1), b = p.b.slice(n, n + 1);
        EXPECT_TRUE(same_bits(whole.slice(n, n + 1), forward(a, b, p.weight).y));
        EXPECT_TRUE(same_bits(whole.slice(n, n + 1), forward(a.clone(), b.clone(), p.weight).y));
      }
    }
}

TEST(GateNorm, NaNReachesTheOutput) {
  for (DType t : {DType::f64, DType::f32})
    for (bool weight : {false, true}) {
      Problem p = make_problem(3, 33, t, weight);
      set(p.a, 33 + 32, kNaN);
      set(p.b, 66 + 5, kNaN);
      const Tensor y = forward(p.a, p.b, p.weight).y;
      EXPECT_EQ(0, count_non_finite(y.slice(0, 1)));
      EXPECT_EQ(weight ? 33 : 1, count_non_finite(y.slice(1, 2)));
      EXPECT_EQ(1, count_non_finite(y.slice(2, 3)));
      EXPECT_TRUE(std::isnan(at(y, 66 + 5)));
    }
}

TEST(GateNorm, RowsWhoseSquaresOverflowAreNaNAndNotZeros) {
  for (float large : {1e25f, -1e30f, 3e38f}) {
    Problem p = make_problem(3, 33, DType::f32, true);
    set(p.a, 33 + 32, large);
    const Tensor y = forward(p.a, p.b, p.weight).y;
    EXPECT_EQ(33, count_non_finite(y)) << large;
    EXPECT_TRUE(std::isnan(at(y, 33))) << large;
    EXPECT_EQ(33, count_non_finite(backward(p)[0])) << large;
  }
}

TEST(GateNorm, RejectsWrongArguments) {
  const Problem p = make_problem(2, 33, DType::f32, true);
  const Tensor narrow({2, 32}, DType::f32), other({2, 33}, DType::f64);
  Outputs o = forward(p.a, p.b, p.weight);
  Tensor none, wrong({1, 33}, DType::f32);
  expect_error<ShapeError>({"gate_norm", "a", "[66]"}, [&] { forward(p.a.reshape({66}), p.b, p.weight); });
  expect_error<ShapeError>({"gate_norm", "b", "[2, 32]"}, [&] { forward(p.a, narrow, p.weight); });
  expect_error<DTypeError>({"gate_norm", "b", "f64"}, [&] { forward(p.a, other, p.weight); });
  expect_error<ShapeError>({"gate_norm", "weight"}, [&] { forward(p.a, p.b, Tensor({32}, DType::f32)); });
  expect_error<ShapeError>({"gate_norm", "y"}, [&] { gate_norm(p.a, p.b, p.weight, kEps, wrong, o.r); });
  expect_error<ShapeError>({"gate_norm_backward", "da"},
                           [&] { gate_norm_backward(p.a, p.b, p.weight, o.r, p.dy, wrong, 0, none, 0, none, 0); });
  expect_error<ShapeError>({"gate_norm_backward", "dy"},
                           [&] { gate_norm_backward(p.a, p.b, p.weight, o.r, narrow, none, 0, none, 0, none, 0); });
}
