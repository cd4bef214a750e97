// norm_quant over each source of rows against the unfused ops: the source by itself, then the norm of plain rows.
#include <gtest/gtest.h>

#include "core/ops/gate_norm.h"
#include "core/ops/norm_quant.h"
#include "tests/support/tensors.h"

using namespace mmfree;

namespace {

constexpr double kEpsGate = 1e-3, kEpsOuter = 1e-5, kEpsInner = 1e-6;
constexpr Rounding kRoundings[] = {Rounding::int8, Rounding::bf16, Rounding::none, Rounding::int8};
constexpr int64_t kRows = 37;

struct Case {
  const char* name;
  RowSource::Kind kind;
  bool weight;
  Activation f = Activation::silu;
};
constexpr Case kCases[] = {{"rows", RowSource::rows, false},
                           {"sum", RowSource::sum, false},
                           {"gate", RowSource::gate, true},
                           {"gate without weight", RowSource::gate, false},
                           {"swiglu", RowSource::glu, false},
                           {"geglu", RowSource::glu, false, Activation::gelu},
                           {"selu", RowSource::activation, false, Activation::selu},
                           {"relu2", RowSource::activation, false, Activation::relu2}};
/// Bit i: branch i has no weight.
constexpr int kBare[] = {0, 0b0101, 0b1111};

RowSource make_source(const Case& c, int64_t n, int64_t d, DType t) {
  RowSource s;
  s.kind = c.kind;
  s.a = random_tensor({n, c.kind == RowSource::glu ? 2 * d : d}, t, 1, 2, 0.3);
  s.f = c.f;
  if (c.kind == RowSource::sum || c.kind == RowSource::gate) s.b = random_tensor({n, d}, t, 2, 1.5);
  if (c.weight) s.weight = random_tensor({d}, t, 3, 0.5, 1);
  s.eps = kEpsGate;
  return s;
}

RowSource rows_of(const Tensor& x) {
  RowSource s;
  s.a = x;
  return s;
}

/// The source's rows by themselves; `r` gets the gate's statistics.
Tensor unfused(const RowSource& s, Tensor& r) {
  Tensor x({s.rows_count(), s.width()}, s.a.dtype());
  r = Tensor({s.rows_count()}, s.a.dtype());
  if (s.kind == RowSource::rows) return s.a;
  if (s.kind == RowSource::sum) add(s.a, s.b, x);
  if (s.kind == RowSource::gate) gate_norm(s.a, s.b, s.weight, s.eps, x, r);
  if (s.kind != RowSource::glu && s.kind != RowSource::activation) return x;
  std::vector<NormBranch> bare{{{}, Rounding::none, x, {}}};
  NormStats stats;
  Tensor none;
  norm_quant(s, {}, 1, 1, bare, stats, none);
  return x;
}

struct Norm {
  Tensor outer;
  std::vector<NormBranch> branches;
  NormStats stats;
};

Norm run(const RowSource& s, bool outer, Tensor& x, int bare = 0) {
  const int64_t n = s.rows_count(), d = s.width();
  const DType t = s.a.dtype();
  Norm norm;
  if (outer) norm.outer = random_tensor({d}, t, 9, 0.5, 1);
  for (uint32_t i = 0; i < 4; ++i) {
    const bool codes = kRoundings[i] == Rounding::int8;
    norm.branches.push_back({bare >> i & 1 ? Tensor() : random_tensor({d}, t, 10 + i, 0.5, 1), kRoundings[i],
                             Tensor({n, d}, codes ? DType::i8 : t), codes ? Tensor({n}, t) : Tensor()});
  }
  norm.stats = make_norm_stats(s, norm.outer, norm.branches);
  norm_quant(s, norm.outer, kEpsOuter, kEpsInner, norm.branches, norm.stats, x);
  return norm;
}

void expect_same(const Tensor& a, const Tensor& b) {
  ASSERT_EQ(a.defined(), b.defined());
  if (!a.defined()) return;
  EXPECT_TRUE(same_bits(a, b));
}

void expect_same_branches(const Norm& a, const Norm& b) {
  for (size_t i = 0; i < a.branches.size(); ++i) {
    EXPECT_TRUE(same_bits(a.branches[i].out, b.branches[i].out)) << "branch " << i;
    if (!a.branches[i].step.defined()) continue;
    EXPECT_TRUE(same_bits(a.branches[i].step, b.branches[i].step)) << "step " << i;
  }
  expect_same(a.stats.r2, b.stats.r2);
  expect_same(a.stats.r1, b.stats.r1);
}

struct Gradients {
  RowSourceGrad source;
  Tensor outer;
  std::vector<NormBranchGrad> branches;
};

/// Gradients of everything, for random gradients of all branches.
Gradients backward(const RowSource& s, const Norm& norm, const Tensor& incoming = {}) {
  const DType t = s.a.dtype();
  const int64_t n = s.rows_count(), d = s.width();
  Gradients g;
  g.source.incoming = incoming;
  g.source.a = full(s.a.shape(), t, kNaN);
  if (s.kind == RowSource::gate) g.source.b = full({n, d}, t, kNaN);
  if (s.weight.defined()) g.source.weight = full({d}, t, kNaN);
  if (norm.outer.defined()) g.outer = full({d}, t, kNaN);
  for (uint32_t i = 0; i < 4; ++i)
    g.branches.push_back({norm.branches[i].weight, random_tensor({n, d}, t, 20 + i),
                          norm.branches[i].weight.defined() ? full({d}, t, kNaN) : Tensor(), 0});
  norm_quant_backward(s, norm.outer, kEpsInner, norm.stats, g.branches, g.source, g.outer, 0);
  return g;
}

/// Calls test(case, d, dtype, with outer norm, bare branches) for every combination.
template <class Test>
void for_all(Test&& test) {
  for (const Case& c : kCases)
    for (DType t : {DType::f64, DType::f32})
      for (int64_t d : kOddColumns)
        for (bool outer : {false, true})
          for (int bare : kBare) {
            SCOPED_TRACE(concat(c.name, ' ', name_of(t), ' ', d, " columns, outer ", outer, ", bare ", bare));
            test(c, d, t, outer, bare);
          }
}

}  // namespace

TEST(NormSources, EqualTheirOwnOpThenTheNormToTheBit) {
  for_all([](const Case& c, int64_t d, DType t, bool outer, int bare) {
    const RowSource s = make_source(c, kRows, d, t);
    Tensor r, none, x = c.kind == RowSource::sum ? full({kRows, d}, t, kNaN) : Tensor();
    const Tensor rows = unfused(s, r);
    const Norm expected = run(rows_of(rows), outer, none, bare), fused = run(s, outer, x, bare);
    expect_same_branches(expected, fused);
    if (c.weight) {
      EXPECT_TRUE(same_bits(r, fused.stats.r0));
    }
    if (c.kind != RowSource::sum) return;
    EXPECT_TRUE(same_bits(rows, x)) << "the sum itself";
    expect_same_branches(expected, run(s, outer, none, bare));  // also where the sum is not wanted
  });
}

TEST(NormSources, BackwardGivesTheRoundedValuesAgainToTheBit) {
  for_all([](const Case& c, int64_t d, DType t, bool outer, int bare) {
    RowSource s = make_source(c, kRows, d, t);
    Tensor x = c.kind == RowSource::sum ? Tensor({kRows, d}, t) : Tensor();
    Norm norm = run(s, outer, x, bare);
    for (NormBranch& b : norm.branches) b.out = full({kRows, d}, t, kNaN), b.step = {};
    norm_quant(s, norm.outer, kEpsOuter, kEpsInner, norm.branches, norm.stats, x);
    if (c.kind == RowSource::sum) s.kind = RowSource::rows, s.a = x, s.b = Tensor();
    const Gradients expected = backward(s, norm);
    Gradients g = backward(s, norm);
    for (size_t i = 0; i < 4; ++i) {
      NormBranchGrad& b = g.branches[i];
      b.rounding = kRoundings[i];
      if (i != 1) b.u = i == 0 ? b.dout : full({kRows, d}, t, kNaN);  // one unwanted, one in place
    }
    norm_quant_backward(s, norm.outer, kEpsInner, norm.stats, g.branches, g.source, g.outer, 0);
    for (size_t i = 0; i < 4; ++i) {
      if (i != 1) {
        EXPECT_TRUE(same_bits(norm.branches[i].out, g.branches[i].u)) << "branch " << i;
      }
      expect_same(expected.branches[i].dweight, g.branches[i].dweight);
    }
    EXPECT_TRUE(same_bits(expected.source.a, g.source.a));
    if (outer) {
      EXPECT_TRUE(same_bits(expected.outer, g.outer));
    }
  });
}

TEST(NormSources, BackwardEqualsTheUnfusedBackwardPassesToTheBit) {
  for_all([](const Case& c, int64_t d, DType t, bool outer, int bare) {
    const RowSource s = make_source(c, kRows, d, t);
    Tensor r, none, x = c.kind == RowSource::sum ? Tensor({kRows, d}, t) : Tensor();
    const Tensor rows = unfused(s, r);
    const Gradients e = backward(rows_of(rows), run(rows_of(rows), outer, none, bare));
    const Norm norm = run(s, outer, x, bare);
    RowSource stored = s;
    if (c.kind == RowSource::sum) stored.kind = RowSource::rows, stored.a = x, stored.b = Tensor();
    const Gradients g = backward(stored, norm);
    for (size_t i = 0; i < 4; ++i) expect_same(e.branches[i].dweight, g.branches[i].dweight);
    if (outer) {
      EXPECT_TRUE(same_bits(e.outer, g.outer));
    }
    Tensor da(s.a.shape(), t), db, dw;
    if (c.kind == RowSource::gate) {
      db = Tensor({kRows, d}, t), dw = c.weight ? Tensor({d}, t) : Tensor();
      gate_norm_backward(s.a, s.b, s.weight, r, e.source.a, da, 0, db, 0, dw, 0);
      EXPECT_TRUE(same_bits(db, g.source.b));
      if (c.weight) {
        EXPECT_TRUE(same_bits(dw, g.source.weight));
      }
    } else if (c.kind == RowSource::glu || c.kind == RowSource::activation) {
      std::vector<NormBranchGrad> alone{{{}, e.source.a, {}}};
      RowSourceGrad grad;
      grad.a = da;
      norm_quant_backward(s, {}, 1, {}, alone, grad, none, 0);
    } else {
      da = e.source.a;
    }
    EXPECT_TRUE(same_bits(da, g.source.a));
  });
}

TEST(NormSources, EachGradientIsOptionalAndChangesNoOther) {
  for (const Case& c : kCases)
    for (DType t : {DType::f64, DType::f32}) {
      SCOPED_TRACE(concat(c.name, ' ', name_of(t)));
      RowSource s = make_source(c, 70, 33, t);
      Tensor x = c.kind == RowSource::sum ? Tensor({70, 33}, t) : Tensor();
      const Norm norm = run(s, true, x);
      if (x.defined()) s.a = x;
      const Gradients all = backward(s, norm);
      for (int left_out = 0; left_out < 5; ++left_out) {
        Gradients g = backward(s, norm);
        Tensor* slots[] = {&g.source.a, &g.source.b, &g.source.weight, &g.outer, &g.branches[2].dweight};
        const Tensor* expected[] = {&all.source.a, &all.source.b, &all.source.weight, &all.outer,
                                    &all.branches[2].dweight};
        for (Tensor* slot : slots)
          if (slot->defined()) fill(*slot, kNaN);
        *slots[left_out] = Tensor();
        norm_quant_backward(s, norm.outer, kEpsInner, norm.stats, g.branches, g.source, g.outer, 0);
        for (int i = 0; i < 5; ++i)
          if (slots[i]->defined()) {
            EXPECT_TRUE(same_bits(*expected[i], *slots[i])) << left_out << ' ' << i;
          }
      }
    }
}

TEST(NormSources, GateWeightHonoursBetaAndASumItsIncomingGradient) {
  for (DType t : {DType::f64, DType::f32}) {
    const RowSource gate = make_source(kCases[2], 70, 33, t);
    Tensor none, x({70, 33}, t);
    Norm norm = run(gate, false, none);
    Gradients g = backward(gate, norm);
    expect_beta_semantics({33}, t, [&](Tensor& dweight, double beta) {
      g.source.weight = dweight, g.source.beta_weight = beta;
      norm_quant_backward(gate, {}, kEpsInner, norm.stats, g.branches, g.source, none, 0);
    });
    RowSource sum = make_source(kCases[1], 70, 33, t);
    norm = run(sum, true, x);
    sum.a = x;
    const Tensor incoming = random_tensor({70, 33}, t, 31), own = backward(sum, norm).source.a;
    Tensor expected({70, 33}, t);
    add(incoming, own, expected);
    EXPECT_TRUE(same_bits(expected, backward(sum, norm, incoming).source.a));
  }
}

TEST(NormSources, Int8WithoutAStepIsCodeTimesStepToTheBit) {
  for_all([](const Case& c, int64_t d, DType t, bool outer, int bare) {
    const RowSource s = make_source(c, kRows, d, t);
    Tensor none;
    const Norm codes = run(s, outer, none, bare);
    std::vector<NormBranch> plain{{codes.branches[3].weight, Rounding::int8, full({kRows, d}, t, kNaN), {}}};
    NormStats stats = make_norm_stats(s, codes.outer, plain);
    norm_quant(s, codes.outer, kEpsOuter, kEpsInner, plain, stats, none);
    const NormBranch& b = codes.branches[3];
    int64_t nonzero = 0;
    for (int64_t i = 0; i < kRows * d; ++i) {
      const int8_t code = b.out.data<int8_t>()[i];
      const double expected = t == DType::f32 ? double(float(code) * b.step.data<float>()[i / d])
                                              : double(code) * b.step.data<double>()[i / d];
      ASSERT_EQ(expected, at(plain[0].out, i)) << i;
      nonzero += code != 0;
    }
    EXPECT_GT(nonzero, 0);
  });
}

TEST(NormSources, GiveTheSameBitsForAnyNumberOfThreads) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(c.name);
    const RowSource s = make_source(c, 300, 127, DType::f32);
    expect_same_bits_for_any_threads([&] {
      Tensor x = c.kind == RowSource::sum ? Tensor({300, 127}, DType::f32) : Tensor();
      const Norm norm = run(s, true, x);
      RowSource stored = s;
      if (x.defined()) stored.a = x;
      const Gradients g = backward(stored, norm);
      std::vector<Tensor> all{norm.stats.r2, norm.branches[0].out, norm.branches[0].step, g.source.a, g.outer};
      for (const Tensor& t : {x, norm.stats.r0, g.source.b, g.source.weight})
        if (t.defined()) all.push_back(t);
      return all;
    });
  }
}

TEST(NormSources, NonFiniteNumbersInAnyInputReachTheirRow) {
  for (const Case& c : kCases)
    for (bool in_b : {false, true}) {
      RowSource s = make_source(c, 3, 33, DType::f32);
      if (in_b && !s.b.defined()) continue;
      set(in_b ? s.b : s.a, (in_b ? s.b : s.a).cols() + 20, kNaN);
      Tensor none;
      const Norm norm = run(s, true, none);
      for (const NormBranch& b : norm.branches) {
        const Tensor& seen = b.step.defined() ? b.step : b.out;
        EXPECT_EQ(seen.slice(1, 2).size(), count_non_finite(seen.slice(1, 2))) << c.name;
        EXPECT_EQ(seen.slice(1, 2).size(), count_non_finite(seen)) << c.name;
      }
    }
}

TEST(NormSources, RowsWhoseSquaresOverflowAreNaNAndNotZeros) {
  for (const Case& c : kCases)
    for (float large : {1e25f, -1e30f, 3e38f}) {
      RowSource s = make_source(c, 3, 33, DType::f32);
      const int64_t row = s.a.cols(), up = c.kind == RowSource::glu ? 33 : 0;
      if (c.kind == RowSource::activation && large < 0) continue;  // no large value
      set(s.a, row + up + 20, large);
      for (bool outer : {false, true}) {
        Tensor x;
        const Norm norm = run(s, outer, x);
        for (const NormBranch& b : norm.branches) {
          const Tensor& seen = b.step.defined() ? b.step : b.out;
          EXPECT_EQ(seen.slice(1, 2).size(), count_non_finite(seen)) << c.name << ' ' << large;
          EXPECT_TRUE(std::isnan(at(seen, seen.cols() == 33 ? 33 : 1))) << c.name << ' ' << large;
        }
        const Gradients g = backward(s, norm);
        EXPECT_NE(0, count_non_finite(g.source.a.slice(1, 2))) << c.name << ' ' << large;
        EXPECT_EQ(0, count_non_finite(g.source.a.slice(0, 1)) + count_non_finite(g.source.a.slice(2, 3))) << c.name;
      }
    }
}

TEST(NormSources, StatsExistWhereTheyAreNeeded) {
  for (const Case& c : kCases)
    for (DType t : {DType::f64, DType::f32})
      for (bool outer : {false, true}) {
        const RowSource s = make_source(c, 5, 3, t);
        const Tensor some = full({3}, t, 1);
        std::vector<NormBranch> branches(2);
        EXPECT_FALSE(make_norm_stats(s, some, branches).r2.defined());
        branches[1].weight = some;
        const NormStats stats = make_norm_stats(s, outer ? some : Tensor(), branches);
        EXPECT_EQ(c.weight, stats.r0.defined());
        EXPECT_EQ(outer, stats.r1.defined());
        for (const Tensor& r : {stats.r0, stats.r1, stats.r2})
          if (r.defined()) {
            EXPECT_TRUE(r.shape() == Shape({5}) && r.dtype() == t);
          }
        EXPECT_TRUE(stats.r2.defined());
      }
}

TEST(NormSources, RejectWrongArguments) {
  const DType f32 = DType::f32;
  const auto source = [&](int which) { return make_source(kCases[which], 4, 6, f32); };
  enum { rows, sum, gate, bare_gate, glu };
  Norm norm;
  const auto call = [&](const RowSource& s, Tensor x = {}) {
    norm.branches = {{full({6}, f32, 1), Rounding::none, Tensor({4, 6}, f32), {}}};
    norm.stats = {Tensor({4}, f32), {}, Tensor({4}, f32)};
    norm_quant(s, {}, kEpsOuter, kEpsInner, norm.branches, norm.stats, x);
  };
  for (int ok : {rows, sum, gate, bare_gate, glu}) EXPECT_NO_THROW(call(source(ok)));
  RowSource s = source(sum);
  s.b = Tensor({4, 5}, f32);
  expect_error<ShapeError>({"norm_quant", "b ", "[4, 5]"}, [&] { call(s); });
  s.b = Tensor({4, 6}, DType::f64);
  EXPECT_THROW(call(s), DTypeError);
  s.b = Tensor();
  expect_error<ShapeError>({"norm_quant", "b ", "undefined"}, [&] { call(s); });
  expect_error<ShapeError>({"norm_quant", "x ", "[4, 5]"}, [&] { call(source(sum), Tensor({4, 5}, f32)); });
  for (int kind : {rows, gate, glu})
    expect_error<ShapeError>({"norm_quant", "only a sum"}, [&] { call(source(kind), Tensor({4, 6}, f32)); });
  s = source(gate);
  s.weight = Tensor({5}, f32);
  expect_error<ShapeError>({"norm_quant", "gate weight", "[5]"}, [&] { call(s); });
  s = source(gate);
  s.b = Tensor();
  expect_error<ShapeError>({"norm_quant", "b ", "undefined"}, [&] { call(s); });
  s = source(glu);
  s.a = Tensor({4, 13}, f32);
  expect_error<ShapeError>({"norm_quant", "two halves", "[4, 13]"}, [&] { call(s); });
  s.a = Tensor({4, 14}, f32);
  expect_error<ShapeError>({"norm_quant", "weight", "[7]"}, [&] { call(s); });
  s = source(gate);
  norm.stats = {};
  expect_error<ShapeError>({"norm_quant", "r0"}, [&] {
    Tensor none;
    norm.stats.r2 = Tensor({4}, f32);
    norm_quant(s, {}, kEpsOuter, kEpsInner, norm.branches, norm.stats, none);
  });
}

TEST(NormSources, RejectWrongGradientsAndOtherDevices) {
  const DType f32 = DType::f32;
  Tensor none;
  for (int which : {2, 4}) {
    const RowSource s = make_source(kCases[which], 4, 6, f32);
    const Norm norm = run(s, false, none);
    Gradients g = backward(s, norm);
    const auto back = [&] { norm_quant_backward(s, {}, kEpsInner, norm.stats, g.branches, g.source, none, 0); };
    g.source.incoming = Tensor({4, 6}, f32);
    expect_error<ShapeError>({"norm_quant_backward", "incoming"}, back);
    g = backward(s, norm);
    g.source.a = Tensor({4, 5}, f32);
    expect_error<ShapeError>({"norm_quant_backward", "gradient of a"}, back);
    if (which == 4) continue;
    g = backward(s, norm);
    g.source.b = Tensor({4, 5}, f32);
    expect_error<ShapeError>({"norm_quant_backward", "gradient of b"}, back);
    g = backward(s, norm);
    g.source.weight = Tensor({7}, f32);
    expect_error<ShapeError>({"norm_quant_backward", "gate weight"}, back);
  }
  const DryRun dry;
  const ArenaScope scope(Arena::counted());
  RowSource s = make_source(kCases[1], 4, 6, f32);
  s.b = Tensor({4, 6}, f32, Device::cuda);
  expect_error<DeviceError>({"norm_quant", "different devices"}, [&] { run(s, false, none); });
  s = make_source(kCases[0], 4, 6, f32);
  Norm norm = run(s, false, none);
  Gradients g = backward(s, norm);
  g.branches[1].dout = Tensor({4, 6}, f32, Device::cuda);
  expect_error<DeviceError>({"norm_quant_backward", "different devices"},
                            [&] { norm_quant_backward(s, {}, kEpsInner, norm.stats, g.branches, g.source, none, 0); });
}
