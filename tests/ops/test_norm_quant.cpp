#include <gtest/gtest.h>

#include "core/ops/norm_quant.h"
#include "core/quantize.h"
#include "tests/support/composed.h"

using namespace mmfree;

namespace {

constexpr double kEpsOuter = 1e-5, kEpsInner = 1e-6;

struct Problem {
  Tensor x, outer;
  std::vector<Tensor> weights;
};

Problem make_problem(int64_t n, int64_t d, DType t, bool with_outer) {
  Problem p{random_tensor({n, d}, t, 1, 2, 0.3), {}, {}};
  if (with_outer) p.outer = random_tensor({d}, t, 2, 0.5, 1);
  for (uint32_t b = 0; b < 4; ++b) p.weights.push_back(random_tensor({d}, t, 3 + b, 0.5, 1));
  return p;
}

constexpr Rounding kRoundings[] = {Rounding::int8, Rounding::bf16, Rounding::none, Rounding::int8};

RowSource rows_of(const Tensor& x) {
  RowSource source;
  source.a = x;
  return source;
}

struct Outputs {
  NormStats stats;
  std::vector<NormBranch> branches;
  std::vector<Tensor> all() const {
    std::vector<Tensor> list;
    if (stats.r2.defined()) list.push_back(stats.r2);
    for (const NormBranch& b : branches) {
      list.push_back(b.out);
      if (b.step.defined()) list.push_back(b.step);
    }
    return list;
  }
};

Outputs forward(const Tensor& x, const Problem& p) {
  const DType t = x.dtype();
  Outputs o;
  Tensor none;
  for (size_t b = 0; b < p.weights.size(); ++b) {
    const bool quantised = kRoundings[b] == Rounding::int8;
    o.branches.push_back({p.weights[b], kRoundings[b], Tensor(x.shape(), quantised ? DType::i8 : t),
                          quantised ? Tensor({x.dim(0)}, t) : Tensor()});
  }
  o.stats = make_norm_stats(rows_of(x), p.outer, o.branches);
  norm_quant(rows_of(x), p.outer, kEpsOuter, kEpsInner, o.branches, o.stats, none);
  return o;
}

/// Relative error of a normalised value: 16 interleaved sums of D/16 squares, halved by the root, and a few roundings.
double norm_bound(int64_t d, DType t) { return (double(d) / 16 + 16) * epsilon_of(t); }

/// Every code must be the nearest integer of the exact value, unless that lies within `bound`·127 of a half.
void check_codes(const NormBranch& b, const composed::Scaled& exact, double bound) {
  int64_t flips = 0;
  for (int64_t i = 0; i < b.out.size(); ++i) {
    const double v = at(exact.codes, i), distance = std::abs(std::abs(v - std::trunc(v)) - 0.5);
    if (b.out.data<int8_t>()[i] == std::round(v)) continue;
    ++flips;
    ASSERT_LE(distance, 127 * 2 * bound) << "code " << int(b.out.data<int8_t>()[i]) << " for " << v;
    ASSERT_NEAR(v, b.out.data<int8_t>()[i], 0.5 + 127 * 2 * bound);
  }
  EXPECT_LE(double(flips), 2 + 2 * 127 * 2 * bound * 4 * double(b.out.size()));
  EXPECT_LE(relative_error(b.step, exact.step), bound);
}

struct Gradients {
  RowSourceGrad source;
  Tensor douter;
  std::vector<NormBranchGrad> branches;
  std::vector<Tensor> all() const {
    std::vector<Tensor> list{source.a};
    if (douter.defined()) list.push_back(douter);
    for (const NormBranchGrad& b : branches) list.push_back(b.dweight);
    return list;
  }
};

Gradients backward(const Problem& p, const Outputs& o) {
  const DType t = p.x.dtype();
  Gradients g{{}, p.outer.defined() ? Tensor(p.outer.shape(), t) : Tensor(), {}};
  g.source.a = Tensor(p.x.shape(), t);
  for (size_t b = 0; b < p.weights.size(); ++b)
    g.branches.push_back({p.weights[b], random_tensor(p.x.shape(), t, 20 + uint32_t(b)), Tensor({p.x.dim(1)}, t), 0});
  norm_quant_backward(rows_of(p.x), p.outer, kEpsInner, o.stats, g.branches, g.source, g.douter, 0);
  return g;
}

}  // namespace

TEST(NormQuant, MatchesItsComposedTwin) {
  for (DType t : {DType::f64, DType::f32})
    for (int64_t d : kOddColumns)
      for (int64_t n : {1, 5})
        for (bool outer : {false, true}) {
          SCOPED_TRACE(concat(name_of(t), ' ', n, 'x', d, " outer ", outer));
          const Problem p = make_problem(n, d, t, outer);
          const Outputs o = forward(p.x, p);
          const double bound = norm_bound(d, t);
          for (const NormBranch& b : o.branches) {
            const Tensor v = composed::normed(p.x, p.outer, kEpsOuter, kEpsInner, b.weight);
            if (b.rounding == Rounding::none) {
              EXPECT_LE(relative_error(b.out, v), bound);
            }
            if (b.rounding == Rounding::int8) check_codes(b, composed::absmax_scaled(v), bound);
            if (b.rounding != Rounding::bf16) continue;
            for (int64_t i = 0; i < v.size(); ++i) {
              const double got = at(b.out, i);
              ASSERT_EQ(got, double(float(bf16(float(got))))) << "more than 8 significant bits";
              ASSERT_NEAR(at(v, i), got, std::abs(at(v, i)) * (0x1p-8 + 2 * bound));
            }
          }
        }
}

TEST(NormQuant, BranchesWithoutAWeightRoundWhatTheOuterNormGives) {
  for (DType t : {DType::f64, DType::f32})
    for (int64_t d : kOddColumns)
      for (bool outer : {false, true})
        for (bool mixed : {false, true}) {
          SCOPED_TRACE(concat(name_of(t), ' ', d, " outer ", outer, " mixed ", mixed));
          Problem p = make_problem(5, d, t, outer);
          const Outputs normed = forward(p.x, p);
          for (size_t b : {0, 1, 2, 3})
            if (b != 1 || !mixed) p.weights[b] = {};
          const Outputs o = forward(p.x, p);
          const Tensor u = outer ? composed::rmsnorm(p.x, p.outer, kEpsOuter) : as_f64(p.x);
          const double bound = norm_bound(d, t);
          for (size_t b : {0, 3}) check_codes(o.branches[b], composed::absmax_scaled(u), bound);
          EXPECT_LE(relative_error(o.branches[2].out, u), bound);
          if (mixed) {
            EXPECT_TRUE(same_bits(normed.branches[1].out, o.branches[1].out));
            continue;
          }
          for (int64_t i = 0; i < u.size(); ++i)
            ASSERT_NEAR(at(u, i), at(o.branches[1].out, i), std::abs(at(u, i)) * (0x1p-8 + 2 * bound));
        }
}

TEST(NormQuant, RoundsWhatTheUnroundedBranchHolds) {
  for (DType t : {DType::f64, DType::f32}) {
    Problem p = make_problem(7, 127, t, true);
    p.weights.assign(4, p.weights[0]);
    const Outputs o = forward(p.x, p);
    dispatch_float(t, "test", [&]<class T>() {
      const T* v = o.branches[2].out.data<T>();
      for (int64_t n = 0; n < 7; ++n) {
        T most = 0;
        for (int64_t k = 0; k < 127; ++k) most = std::max(most, std::abs(v[n * 127 + k]));
        const auto scale = activation_scale(most);
        ASSERT_EQ(scale.step, o.branches[0].step.data<T>()[n]);
        for (int64_t k = n * 127; k < (n + 1) * 127; ++k) {
          ASSERT_EQ(activation_code(v[k], scale.inverse), o.branches[0].out.data<int8_t>()[k]);
          ASSERT_EQ(T(float(bf16(float(v[k])))), o.branches[1].out.data<T>()[k]);
        }
      }
    });
  }
}

TEST(NormQuant, GradientsInSinglePrecisionFollowThoseInDouble) {
  for (int64_t d : kOddColumns)
    for (bool outer : {false, true}) {
      SCOPED_TRACE(concat(d, " columns, outer ", outer));
      const Problem p = make_problem(70, d, DType::f32, outer);
      Problem p64{as_f64(p.x), as_type(p.outer, DType::f64), {}};
      for (const Tensor& w : p.weights) p64.weights.push_back(as_f64(w));
      Outputs o = forward(p.x, p), o64 = forward(p64.x, p64);
      const Gradients g = backward(p, o);
      Gradients g64 = backward(p64, o64);
      if (d == 1) {  // dx is the difference of nearly equal numbers: only its size can be asked for
        EXPECT_LE(std::sqrt(sum_of_squares(g.source.a)), 1e-3);
        continue;
      }
      for (size_t i = 0; i < g.all().size(); ++i)  // sums over columns and rows of a few roundings each
        EXPECT_LE(relative_error(g.all()[i], g64.all()[i]), 16 * norm_bound(d, DType::f32)) << "gradient " << i;
    }
}

TEST(NormQuant, BackwardHonoursBeta) {
  for (DType t : {DType::f64, DType::f32})
    for (bool outer : {false, true}) {
      const Problem p = make_problem(70, 33, t, outer);
      const Outputs o = forward(p.x, p);
      Gradients g = backward(p, o);
      RowSourceGrad unwanted;
      Tensor none;
      if (outer)
        expect_beta_semantics({33}, t, [&](Tensor& douter, double beta) {
          norm_quant_backward(rows_of(p.x), p.outer, kEpsInner, o.stats, g.branches, unwanted, douter, beta);
        });
      expect_beta_semantics({33}, t, [&](Tensor& dweight, double beta) {
        g.branches[1].dweight = dweight, g.branches[1].beta_weight = beta;
        norm_quant_backward(rows_of(p.x), p.outer, kEpsInner, o.stats, g.branches, unwanted, none, 0);
      });
    }
}

TEST(NormQuant, BackwardAddsAnIncomingGradientAlsoInPlace) {
  for (DType t : {DType::f64, DType::f32})
    for (bool outer : {false, true}) {
      const Problem p = make_problem(70, 33, t, outer);
      const Outputs o = forward(p.x, p);
      Gradients g = backward(p, o);
      const Tensor own = g.source.a.clone(), incoming = random_tensor({70, 33}, t, 50);
      Tensor expected({70, 33}, t);
      add(incoming, own, expected);
      for (bool in_place : {false, true}) {
        g.source.incoming = incoming.clone();
        g.source.a = in_place ? g.source.incoming : full({70, 33}, t, kNaN);
        norm_quant_backward(rows_of(p.x), p.outer, kEpsInner, o.stats, g.branches, g.source, g.douter, 0);
        EXPECT_TRUE(same_bits(expected, g.source.a)) << in_place;
      }
    }
}

TEST(NormQuant, GivesTheSameBitsForAnyNumberOfThreads) {
  const Problem p = make_problem(300, 127, DType::f32, true);
  expect_same_bits_for_any_threads([&] {
    const Outputs o = forward(p.x, p);
    std::vector<Tensor> all = o.all();
    for (const Tensor& t : backward(p, o).all()) all.push_back(t);
    return all;
  });
}

TEST(NormQuant, RowsDoNotDependOnEachOther) {
  for (int64_t d : kOddColumns) {
    const Problem p = make_problem(37, d, DType::f32, true);
    const std::vector<Tensor> whole = forward(p.x, p).all();
    for (int64_t n : {0, 1, 16, 36})
      for (const Tensor& row : {p.x.slice(n, n + 1), p.x.slice(n, n + 1).clone()}) {
        const std::vector<Tensor> alone = forward(row, p).all();
        for (size_t i = 0; i < whole.size(); ++i)
          EXPECT_TRUE(same_bits(whole[i].slice(n, n + 1), alone[i])) << "row " << n << " output " << i;
      }
  }
}

TEST(NormQuant, NonFiniteRowsStayNonFinite) {
  for (DType t : {DType::f64, DType::f32})
    for (bool outer : {false, true})
      for (double bad : {kNaN, kInfinity, -kInfinity})
        for (int64_t at_column : {0, 17, 32}) {
          Problem p = make_problem(3, 33, t, outer);
          set(p.x, 33 + at_column, bad);
          const Outputs o = forward(p.x, p);
          for (const NormBranch& b : o.branches) {
            const Tensor& seen = b.step.defined() ? b.step : b.out;
            EXPECT_NE(0, count_non_finite(seen.slice(1, 2)));
            EXPECT_EQ(0, count_non_finite(seen.slice(0, 1)) + count_non_finite(seen.slice(2, 3)));
            if (std::isnan(bad)) {
              EXPECT_EQ(seen.slice(1, 2).size(), count_non_finite(seen.slice(1, 2)));
            }
          }
        }
  Problem p = make_problem(2, 33, DType::f32, false);
  set(p.weights[0], 5, kNaN);
  EXPECT_EQ(2, count_non_finite(forward(p.x, p).branches[0].step));
}

TEST(NormQuant, HandlesNoRowsAndZeroRows) {
  Problem p = make_problem(0, 33, DType::f32, true);
  EXPECT_EQ(0, forward(p.x, p).stats.r2.size());
  p.x = Tensor::zeros({1, 33}, DType::f32);
  const Outputs o = forward(p.x, p);
  EXPECT_EQ(float(1e-5) / 127, o.branches[0].step.data<float>()[0]);
  for (int k = 0; k < 33; ++k) EXPECT_EQ(0, o.branches[0].out.data<int8_t>()[k]);
}

TEST(NormQuant, RejectsWrongArguments) {
  const Problem p = make_problem(2, 33, DType::f32, true);
  Outputs o = forward(p.x, p);
  const auto run = [&](const Tensor& x, const Tensor& outer) {
    Tensor none;
    norm_quant(rows_of(x), outer, kEpsOuter, kEpsInner, o.branches, o.stats, none);
  };
  expect_error<ShapeError>({"norm_quant", "a ", "[66]"}, [&] { run(p.x.reshape({66}), {}); });
  expect_error<ShapeError>({"norm_quant", "a ", "undefined"}, [&] { run({}, {}); });
  expect_error<DTypeError>({"norm_quant", "a ", "i8"}, [&] { run(Tensor({2, 33}, DType::i8), {}); });
  expect_error<ShapeError>({"norm_quant", "outer", "[32]"}, [&] { run(p.x, Tensor({32}, DType::f32)); });
  expect_error<DTypeError>({"norm_quant", "outer", "f64"}, [&] { run(p.x, Tensor({33}, DType::f64)); });
  expect_error<ShapeError>({"norm_quant", "r1"}, [&] { run(Tensor({3, 33}, DType::f32), p.outer); });
  o.branches[0].out = Tensor({2, 33}, DType::f32);
  expect_error<DTypeError>({"norm_quant", "out", "i8"}, [&] { run(p.x, p.outer); });
  o = forward(p.x, p);
  o.branches[3].step = Tensor({3}, DType::f32);
  expect_error<ShapeError>({"norm_quant", "step"}, [&] { run(p.x, p.outer); });
  o.branches[3].step = Tensor();  // int8 without a step is a value in A, so codes do not fit
  expect_error<DTypeError>({"norm_quant", "out", "f32"}, [&] { run(p.x, p.outer); });
  o = forward(p.x, p);
  Gradients g = backward(p, o);
  const auto back = [&] {
    norm_quant_backward(rows_of(p.x), p.outer, kEpsInner, o.stats, g.branches, g.source, g.douter, 0);
  };
  g.source.a = Tensor({2, 32}, DType::f32);
  expect_error<ShapeError>({"norm_quant_backward", "gradient of a"}, back);
  g = backward(p, o);
  g.source.incoming = Tensor({2, 33}, DType::f64);
  expect_error<DTypeError>({"norm_quant_backward", "incoming"}, back);
  g = backward(p, o);
  g.branches[2].dout = Tensor({1, 33}, DType::f32);
  expect_error<ShapeError>({"norm_quant_backward", "dout"}, back);
  g = backward(p, o);
  g.branches[1].u = Tensor({2, 32}, DType::f32);
  expect_error<ShapeError>({"norm_quant_backward", " u "}, back);
  g.branches[1].u = Tensor({2, 33}, DType::i8);
  expect_error<DTypeError>({"norm_quant_backward", " u "}, back);
  g.branches[0].rounding = o.branches[1].rounding = Rounding(9);
  expect_error<Error>({"norm_quant_backward", "rounding 9"}, back);
  expect_error<Error>({"norm_quant", "rounding 9"}, [&] { run(p.x, p.outer); });
  g = backward(p, o), o = forward(p.x, p);
  g.branches[0].weight = {};
  expect_error<Error>({"norm_quant_backward", "dweight", "without a weight"}, back);
  g = backward(p, o);
  g.branches.insert(g.branches.end(), 2, g.branches[0]);
  expect_error<ShapeError>({"norm_quant_backward", "1 to 4 branches", "got 6"}, back);
  o.branches.insert(o.branches.end(), 1, o.branches[0]);
  expect_error<ShapeError>({"norm_quant", "1 to 4 branches", "got 5"}, [&] { run(p.x, p.outer); });
  g.branches.clear();
  expect_error<ShapeError>({"norm_quant_backward", "1 to 4 branches", "got 0"}, back);
}
