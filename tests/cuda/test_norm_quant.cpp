#include <algorithm>

#include "core/ops/check.h"
#include "core/ops/norm_quant.h"
#include "core/ops/ternary_int8.h"
#include "core/quantize.h"
#include "tests/cuda/twins.h"
#include "tests/support/composed.h"

using namespace mmfree;

namespace {

constexpr double kEpsGate = 1e-6, kEpsOuter = 1e-5, kEpsInner = 1e-6;

/// How a branch is rounded and stored.
enum Mode { kCodes, kValues, kBf16, kNone, kModes };

Rounding rounding_of(Mode m) { return m == kBf16 ? Rounding::bf16 : m == kNone ? Rounding::none : Rounding::int8; }

struct Case {
  RowSource::Kind kind = RowSource::rows;
  bool gate_weight = false;
  DType type = DType::f32, type_a = DType::f32;
  int64_t n = 3, d = 33;
  bool outer = false;
  std::vector<Mode> modes{kCodes};
  Activation f = Activation::silu;
  int bare = 0;  ///< bit b: branch b has no weight
  std::string name() const {
    return concat("kind ", int(kind), ' ', name_of(f), gate_weight ? " weight " : " ", name_of(type), " of ",
                  name_of(type_a), ' ', n, 'x', d, outer ? " outer, " : ", ", modes.size(), " branches from ",
                  int(modes[0]), ", bare ", bare);
  }
};

/// Every kind of source with every dtype it can have.
std::vector<Case> sources() {
  std::vector<Case> all;
  for (DType t : {DType::f32, DType::bf16}) {
    for (RowSource::Kind kind : {RowSource::rows, RowSource::sum}) {
      all.push_back({kind, false, t, t});
      if (t == DType::bf16) all.push_back({kind, false, t, DType::f32});
    }
    for (bool weight : {false, true}) all.push_back({RowSource::gate, weight, t, t});
    all.push_back({.kind = RowSource::glu, .type = t, .type_a = t});
    all.push_back({.kind = RowSource::glu, .type = t, .type_a = t, .f = Activation::gelu});
    all.push_back({.kind = RowSource::activation, .type = t, .type_a = t, .f = Activation::relu2});
  }
  return all;
}

struct Problem {
  RowSource source;
  Tensor outer, incoming;
  std::vector<Tensor> weights, douts;
};

Problem make_problem(const Case& c) {
  const bool halves = c.kind == RowSource::glu;
  const Shape shape{c.n, c.d};
  Problem p;
  p.source = {c.kind, random_of({c.n, halves ? 2 * c.d : c.d}, c.type_a, 1, 2, 0.3), {}, {}, kEpsGate, c.f};
  if (c.kind == RowSource::sum || c.kind == RowSource::gate) p.source.b = random_of(shape, c.type, 2, 2);
  if (c.gate_weight) p.source.weight = random_of({c.d}, DType::f32, 3, 0.5, 1);
  if (c.outer) p.outer = random_of({c.d}, DType::f32, 4, 0.5, 1);
  if (c.kind <= RowSource::sum) p.incoming = random_of(shape, c.type, 5);
  for (uint32_t b = 0; b < c.modes.size(); ++b) {
    p.weights.push_back(c.bare >> b & 1 ? Tensor() : random_of({c.d}, DType::f32, 6 + b, 0.5, 1));
    p.douts.push_back(random_of(shape, c.type, 16 + b));
  }
  return p;
}

Problem on_gpu(const Problem& p, const Case& c) {
  Problem g{{c.kind, to_gpu(p.source.a, c.type_a), to_gpu(p.source.b, c.type), to_gpu(p.source.weight, DType::f32),
             kEpsGate, c.f},
            to_gpu(p.outer, DType::f32),
            to_gpu(p.incoming, c.type),
            {},
            {}};
  for (const Tensor& w : p.weights) g.weights.push_back(to_gpu(w, DType::f32));
  for (const Tensor& t : p.douts) g.douts.push_back(to_gpu(t, c.type));
  return g;
}

struct Outputs {
  std::vector<NormBranch> branches;
  NormStats stats;
  Tensor x;
  std::vector<Tensor> all() const {
    std::vector<Tensor> list;
    for (const Tensor& t : {stats.r0, stats.r1, stats.r2, x})
      if (t.defined()) list.push_back(t);
    for (const NormBranch& b : branches) {
      list.push_back(b.out);
      if (b.step.defined()) list.push_back(b.step);
    }
    return list;
  }
};

DType dtype_of(Mode m, DType t) { return m == kCodes ? DType::i8 : m == kNone ? param_dtype(t) : t; }

/// A is `t`: on the GPU the case's, on the CPU f64.
Outputs forward(const Problem& p, DType t, const std::vector<Mode>& modes) {
  const Device device = p.source.a.device();
  const int64_t n = p.source.rows_count(), d = p.source.width();
  Outputs o;
  for (size_t b = 0; b < modes.size(); ++b)
    o.branches.push_back({p.weights[b], rounding_of(modes[b]), Tensor({n, d}, dtype_of(modes[b], t), device),
                          modes[b] == kCodes ? Tensor({n}, param_dtype(t), device) : Tensor()});
  o.stats = make_norm_stats(p.source, p.outer, o.branches);
  if (p.source.kind == RowSource::sum) o.x = Tensor({n, d}, p.source.a.dtype(), device);
  norm_quant(p.source, p.outer, kEpsOuter, kEpsInner, o.branches, o.stats, o.x);
  return o;
}

/// The same in f64 with values before rounding. A sum is taken as rows of what the GPU stores as x.
Outputs expected_forward(Problem& p, const Case& c) {
  if (c.kind == RowSource::sum) {
    Tensor x = p.source.a.clone();
    for (int64_t i = 0; i < x.size(); ++i) set(x, i, at(x, i) + at(p.source.b, i));
    p.source = {RowSource::rows, as_f64(as_type(x, c.type_a)), {}, {}, 0};
  }
  return forward(p, DType::f64, std::vector<Mode>(c.modes.size(), kNone));
}

/// Compares one branch with the exact values before its rounding.
void check_branch(const NormBranch& got, Mode mode, const Tensor& exact, DType t) {
  const int64_t n = exact.rows(), d = exact.cols();
  const composed::Scaled scaled = composed::absmax_scaled(exact);
  const Tensor out =
      from_gpu(mode == kCodes ? composed::dequantised(got.out.to(Device::cpu), from_gpu(got.step)) : got.out);
  if (mode == kCodes) {
    EXPECT_LE(relative_error(from_gpu(got.step), scaled.step), 1e-5);
  }
  int64_t other_codes = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double step = at(scaled.step, i), row = 127 * step;
    for (int64_t k = i * d; k < (i + 1) * d; ++k) {
      const double v = at(exact, k), code = std::round(at(scaled.codes, k));
      if (mode == kCodes || mode == kValues) {
        // A code may be the next one where the exact value lies within the error of a half.
        const double near = step * (0.02 + (mode == kValues && t == DType::bf16 ? std::abs(code) * 0x1p-8 : 0));
        const bool same = std::abs(at(out, k) - code * step) <= near;
        other_codes += !same;
        if (!same) {
          ASSERT_NEAR(v, at(out, k), 0.505 * step + near) << "row " << i << " column " << k % d;
        }
        continue;
      }
      const double rounding = mode == kBf16 ? 0x1p-8 * std::abs(v) : 0;
      ASSERT_NEAR(v, at(out, k), rounding + 1e-5 * row) << "row " << i << " column " << k % d;
    }
  }
  EXPECT_LE(other_codes, 2 + exact.size() / 1000);
}

void check_forward(const Case& c, const Problem& gpu_problem, Problem p) {
  SCOPED_TRACE(c.name());
  const Outputs got = forward(gpu_problem, c.type, c.modes), exact = expected_forward(p, c);
  for (size_t b = 0; b < c.modes.size(); ++b) check_branch(got.branches[b], c.modes[b], exact.branches[b].out, c.type);
  if (exact.stats.r2.defined()) {
    EXPECT_LE(relative_error(from_gpu(got.stats.r2), exact.stats.r2), 1e-5);
  }
  if (c.outer) {
    EXPECT_LE(relative_error(from_gpu(got.stats.r1), exact.stats.r1), 1e-5);
  }
  if (c.gate_weight) {
    EXPECT_LE(relative_error(from_gpu(got.stats.r0), exact.stats.r0), 1e-5);
  }
  if (got.x.defined()) {
    EXPECT_LE(relative_error(from_gpu(got.x), p.source.a), 0);
  }
}

struct Gradients {
  RowSourceGrad source;
  std::vector<NormBranchGrad> branches;
  Tensor douter;
  std::vector<Tensor> all() const {
    std::vector<Tensor> list{source.a, source.b, source.weight, douter};
    for (const NormBranchGrad& b : branches) list.push_back(b.dweight);
    std::erase_if(list, [](const Tensor& t) { return !t.defined(); });
    return list;
  }
};

/// Gradients of weights become beta · 1 + ...
Gradients backward(const Problem& p, const NormStats& stats, DType t, double beta) {
  const Device device = p.source.a.device();
  const int64_t n = p.source.rows_count(), d = p.source.width();
  const auto ones = [&] { return full({d}, t == DType::f64 ? t : DType::f32, beta == 0 ? kNaN : 1).to(device); };
  Gradients g;
  g.source.incoming = p.incoming;
  g.source.a = Tensor(p.source.a.shape(), t, device);
  if (p.source.kind == RowSource::gate) g.source.b = Tensor({n, d}, t, device);
  if (p.source.weight.defined()) g.source.weight = ones();
  g.source.beta_weight = beta;
  if (p.outer.defined()) g.douter = ones();
  for (size_t b = 0; b < p.weights.size(); ++b)
    g.branches.push_back({p.weights[b], p.douts[b], p.weights[b].defined() ? ones() : Tensor(), beta});
  norm_quant_backward(p.source, p.outer, kEpsInner, stats, g.branches, g.source, g.douter, beta);
  return g;
}

void check_backward(const Case& c, Problem gpu_problem, Problem p, double beta) {
  SCOPED_TRACE(concat(c.name(), " beta ", beta));
  const Outputs got_forward = forward(gpu_problem, c.type, c.modes), exact_forward = expected_forward(p, c);
  if (got_forward.x.defined() && beta == 0) gpu_problem.source = {RowSource::rows, got_forward.x, {}, {}, 0};
  const Gradients got = backward(gpu_problem, got_forward.stats, c.type, beta);
  const Gradients exact = backward(p, exact_forward.stats, DType::f64, beta);
  const std::vector<Tensor> got_all = got.all(), exact_all = exact.all();
  ASSERT_EQ(exact_all.size(), got_all.size());
  for (size_t i = 0; i < got_all.size(); ++i) {
    const Tensor g = from_gpu(got_all[i]);
    ASSERT_EQ(0, count_non_finite(g));
    if (c.d == 1) continue;  // differences of nearly equal numbers
    EXPECT_LE(relative_error(g, exact_all[i]), gpu_bound(got_all[i].dtype())) << "gradient " << i;
  }
}

void expect_same_bits(const Gradients& expected, const Gradients& got) {
  const std::vector<Tensor> a = expected.all(), b = got.all();
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i)
    EXPECT_TRUE(same_bits(a[i].to(Device::cpu), b[i].to(Device::cpu))) << "gradient " << i;
}

/// `branches` modes starting at `first`.
std::vector<Mode> some_modes(int branches, int first) {
  std::vector<Mode> modes;
  for (int b = 0; b < branches; ++b) modes.push_back(Mode((first + b) % kModes));
  return modes;
}

constexpr int64_t kWidths[] = {1, 7, 33, 100, 256, 512, 1000, 1024, 1408, 2048, 2816, 5632, 6912};

}  // namespace

TEST(CudaNormQuant, FollowsTheCpuForEveryWidth) {
  MMFREE_NEEDS_GPU();
  int first = 0;
  for (Case c : sources())
    for (int64_t d : kWidths)
      for (bool outer : {false, true})
        for (int branches : {1, 2, 3, 4}) {
          if (branches % 2 == 0 && d > 100) continue;
          c.d = d, c.outer = outer, c.modes = some_modes(branches, first++);
          const Problem p = make_problem(c);
          check_forward(c, on_gpu(p, c), p);
          check_backward(c, on_gpu(p, c), p, first % 2);
        }
}

TEST(CudaNormQuant, FollowsTheCpuForAnyNumberOfRows) {
  MMFREE_NEEDS_GPU();
  int first = 0;
  for (Case c : sources())
    for (int64_t d : {33, 256})
      for (int64_t n : {1, 130, 1025, 4099}) {
        if (n == 4099 && c.type == DType::f32) continue;
        c.n = n, c.d = d, c.modes = some_modes(1 + first % 3, first), c.outer = first % 2, ++first;
        const Problem p = make_problem(c);
        check_forward(c, on_gpu(p, c), p);
        check_backward(c, on_gpu(p, c), p, n % 2);
      }
}

TEST(CudaNormQuant, FollowsTheCpuForEveryActivation) {
  MMFREE_NEEDS_GPU();
  int first = 0;
  for (RowSource::Kind kind : {RowSource::glu, RowSource::activation})
    for (Activation f : kAllActivations)
      for (DType t : {DType::f32, DType::bf16})
        for (int64_t d : {7, 100, 256, 1408, 5632, 6912}) {
          Case c{.kind = kind, .type = t, .type_a = t, .d = d, .modes = some_modes(1, first), .f = f};
          c.bare = first++ % 3 == 0;
          const Problem p = make_problem(c);
          check_forward(c, on_gpu(p, c), p);
          check_backward(c, on_gpu(p, c), p, first % 2);
        }
}

TEST(CudaNormQuant, BranchesWithoutANormFollowTheCpu) {
  MMFREE_NEEDS_GPU();
  constexpr std::pair<int, int> kBranchesAndBare[] = {{1, 0b1},   {2, 0b01},  {2, 0b11},  {3, 0b101},
                                                      {3, 0b111}, {4, 0b110}, {4, 0b1111}};
  int first = 0;
  for (Case c : sources())
    for (int64_t d : {7, 33, 256, 1000, 2048, 6912})
      for (bool outer : {false, true})
        for (const auto& [branches, bare] : kBranchesAndBare) {
          c.n = 5, c.d = d, c.outer = outer, c.bare = bare, c.modes = some_modes(branches, first++);
          const Problem p = make_problem(c);
          check_forward(c, on_gpu(p, c), p);
          check_backward(c, on_gpu(p, c), p, first % 2);
        }
}

TEST(CudaNormQuant, TakesEveryRounding) {
  MMFREE_NEEDS_GPU();
  for (Case c : sources())
    for (int mode = 0; mode < kModes; ++mode) {
      c.d = 1024, c.n = 5, c.modes = {Mode(mode)};
      const Problem p = make_problem(c);
      check_forward(c, on_gpu(p, c), p);
    }
}

TEST(CudaNormQuant, TakesMemoryOfAnyAlignment) {
  MMFREE_NEEDS_GPU();
  for (Case c : sources()) {
    c.d = 64;
    const Problem p = make_problem(c);
    Problem g = on_gpu(p, c);
    Tensor shifted = gpu_tensor({p.source.a.size() + 1}, c.type_a).slice(1, p.source.a.size() + 1);
    shifted.copy_from(g.source.a.reshape({p.source.a.size()}));
    g.source.a = shifted.reshape(p.source.a.shape());
    check_forward(c, g, p);
    check_backward(c, g, p, 1);
  }
}

TEST(CudaNormQuant, RoundsWhatTheUnroundedBranchHolds) {
  MMFREE_NEEDS_GPU();
  for (int64_t d : {127, 1024, 6912})
    for (bool outer : {false, true}) {
      Case c{.n = 7, .d = d, .outer = outer, .modes = {kNone, kCodes, kValues}};
      Problem p = make_problem(c);
      p.weights.assign(3, p.weights[0]);
      const Outputs o = forward(on_gpu(p, c), c.type, c.modes), rounded = forward(on_gpu(p, c), c.type, {kNone, kBf16});
      const auto host = [](const Tensor& t) { return t.to(Device::cpu); };
      const Tensor v = host(o.branches[0].out), codes = host(o.branches[1].out), step = host(o.branches[1].step);
      const Tensor values = host(o.branches[2].out), bf16s = host(rounded.branches[1].out);
      for (int64_t n = 0; n < c.n; ++n) {
        float most = 0;
        for (int64_t k = 0; k < d; ++k) most = std::max(most, std::abs(v.data<float>()[n * d + k]));
        const auto scale = activation_scale(most);
        ASSERT_EQ(scale.step, step.data<float>()[n]);
        for (int64_t k = n * d; k < (n + 1) * d; ++k) {
          const int8_t code = activation_code(v.data<float>()[k], scale.inverse);
          ASSERT_EQ(code, codes.data<int8_t>()[k]);
          ASSERT_EQ(float(code) * scale.step, values.data<float>()[k]);
          ASSERT_EQ(float(bf16(v.data<float>()[k])), bf16s.data<float>()[k]);
        }
      }
    }
}

TEST(CudaNormQuant, NonFiniteRowsStayNonFinite) {
  MMFREE_NEEDS_GPU();
  for (Case c : sources())
    for (int64_t d : {33, 64})
      for (bool outer : {false, true})
        for (double bad : {kNaN, kInfinity, -kInfinity, 3e38}) {
          c.d = d, c.outer = outer, c.modes = {kCodes, kValues, kNone};
          SCOPED_TRACE(concat(c.name(), " with ", bad));
          Problem p = make_problem(c);
          set(p.source.a, p.source.a.cols() + 17, bad);
          if (c.kind == RowSource::activation && bad < 0) continue;  // zeros
          if (c.kind == RowSource::glu) set(p.source.a, p.source.a.cols() + d + 17, 1);
          const Outputs o = forward(on_gpu(p, c), c.type, c.modes);
          for (const NormBranch& b : o.branches) {
            const Tensor seen = from_gpu(b.step.defined() ? b.step : b.out);
            EXPECT_EQ(0, count_non_finite(seen.slice(0, 1)) + count_non_finite(seen.slice(2, 3)));
            EXPECT_EQ(seen.slice(1, 2).size(), count_non_finite(seen.slice(1, 2)));
          }
        }
  Case c{.n = 2};
  Problem p = make_problem(c);
  set(p.weights[0], 5, kNaN);
  EXPECT_EQ(2, count_non_finite(from_gpu(forward(on_gpu(p, c), c.type, c.modes).branches[0].step)));
}

TEST(CudaNormQuant, HandlesNoRowsAndZeroRows) {
  MMFREE_NEEDS_GPU();
  for (Case c : sources())
    for (int64_t d : {33, 64}) {
      c.d = d, c.n = 0;
      SCOPED_TRACE(c.name());
      const Problem none = on_gpu(make_problem(c), c);
      for (double beta : {0.0, 0.5})
        for (const NormBranchGrad& b : backward(none, forward(none, c.type, c.modes).stats, c.type, beta).branches)
          EXPECT_TRUE(same_bits(full({d}, DType::f32, beta), b.dweight.to(Device::cpu)));
      c.n = 2, c.outer = true;
      Problem zeros = on_gpu(make_problem(c), c);
      for (Tensor* t : {&zeros.source.a, &zeros.source.b})
        if (t->defined()) t->fill_zero();
      const Outputs o = forward(zeros, c.type, c.modes);
      const Tensor step = o.branches[0].step.to(Device::cpu), codes = o.branches[0].out.to(Device::cpu);
      EXPECT_EQ(float(1e-5) / 127, step.data<float>()[1]);
      for (int64_t k = 0; k < 2 * d; ++k) ASSERT_EQ(0, codes.data<int8_t>()[k]);
      for (const Tensor& g : backward(zeros, o.stats, c.type, 0).all()) EXPECT_EQ(0, count_non_finite(from_gpu(g)));
    }
}

TEST(CudaNormQuant, LeavesUnwantedGradientsAlone) {
  MMFREE_NEEDS_GPU();
  for (Case c : sources())
    for (int64_t d : {33, 64}) {
      c.d = d, c.modes = {kCodes, kCodes}, c.outer = true;
      const Problem p = on_gpu(make_problem(c), c);
      const NormStats stats = forward(p, c.type, c.modes).stats;
      const Gradients all = backward(p, stats, c.type, 0);
      Gradients some = backward(p, stats, c.type, 0), none = some;
      some.source.a = some.source.b = some.source.weight = some.douter = some.branches[0].dweight = {};
      norm_quant_backward(p.source, p.outer, kEpsInner, stats, some.branches, some.source, some.douter, 0);
      EXPECT_TRUE(same_bits(all.branches[1].dweight.to(Device::cpu), some.branches[1].dweight.to(Device::cpu)));
      none.source.b = none.source.weight = none.douter = none.branches[0].dweight = none.branches[1].dweight = {};
      norm_quant_backward(p.source, p.outer, kEpsInner, stats, none.branches, none.source, none.douter, 0);
      EXPECT_TRUE(same_bits(all.source.a.to(Device::cpu), none.source.a.to(Device::cpu)));
    }
}

TEST(CudaNormQuant, BackwardGivesTheRoundedValuesAgainToTheBit) {
  MMFREE_NEEDS_GPU();
  constexpr Mode kAll[] = {kValues, kBf16, kNone, kValues, kValues, kNone};
  const auto host = [](const Tensor& t) { return t.to(Device::cpu); };
  int turn = 0;
  for (Case c : sources())
    for (int64_t d : {33, 64, 1024, 1408, 2048, 2816, 5632, 8192})
      for (bool outer : {false, true})
        for (size_t branches : {1, 2, 3, 4}) {
          const int first = turn++ / 4 % 3;
          c.bare = turn % 5 == 0 ? 0b1111 : turn % 5 == 1 ? 0b0110 : 0;
          c.n = d == 2048 && branches != 2 ? 450 : 5, c.d = d, c.outer = outer,
          c.modes.assign(kAll + first, kAll + first + branches);
          SCOPED_TRACE(c.name());
          Problem p = on_gpu(make_problem(c), c);
          const Outputs o = forward(p, c.type, c.modes);
          std::vector<Mode> codes = c.modes;
          std::replace(codes.begin(), codes.end(), kValues, kCodes);
          const Outputs trained = forward(p, c.type, codes);  // as the forward pass runs it, with other tensors out
          if (o.x.defined()) p.source = {RowSource::rows, o.x, {}, {}, 0};
          const Gradients plain = backward(p, o.stats, c.type, 0);
          Gradients got = backward(p, o.stats, c.type, 0);
          for (size_t b = 0; b < branches; ++b) {
            got.branches[b].rounding = rounding_of(c.modes[b]);
            got.branches[b].dout = p.douts[b].clone();
            const DType dtype = dtype_of(c.modes[b], c.type);
            const bool in_place = b == 0 && turn % 2 && dtype == c.type, unwanted = b == 1 && turn % 2;
            got.branches[b].u = in_place   ? got.branches[b].dout
                                : unwanted ? Tensor()
                                           : Tensor({c.n, c.d}, dtype, Device::cuda);
          }
          norm_quant_backward(p.source, p.outer, kEpsInner, trained.stats, got.branches, got.source, got.douter, 0);
          for (size_t b = 0; b < branches; ++b)
            if (got.branches[b].u.defined()) {
              EXPECT_TRUE(same_bits(host(o.branches[b].out), host(got.branches[b].u))) << "branch " << b;
            }
          expect_same_bits(plain, got);
        }
}

TEST(CudaNormQuant, BackwardGivesTheCodesAgainToTheBit) {
  MMFREE_NEEDS_GPU();
  int turn = 0;
  for (Case c : sources())
    for (int64_t d : {33, 64, 1024, 1408, 2048, 5632, 8192})
      for (size_t branches : {1, 3}) {
        c.bare = ++turn % 4 == 0 ? 0b111 : turn % 4 == 1 ? 0b010 : 0;
        c.n = turn % 3 ? 5 : 450, c.d = d, c.outer = turn % 2, c.modes.assign(branches, kCodes);
        SCOPED_TRACE(c.name());
        Problem p = on_gpu(make_problem(c), c);
        const Outputs o = forward(p, c.type, c.modes);
        if (o.x.defined()) p.source = {RowSource::rows, o.x, {}, {}, 0};
        const Gradients plain = backward(p, o.stats, c.type, 0);
        Gradients got = backward(p, o.stats, c.type, 0);
        for (NormBranchGrad& b : got.branches)
          b.u = Tensor({c.n, c.d}, DType::i8, Device::cuda), b.step = Tensor({c.n}, DType::f32, Device::cuda);
        norm_quant_backward(p.source, p.outer, kEpsInner, o.stats, got.branches, got.source, got.douter, 0);
        for (size_t b = 0; b < branches; ++b) {
          EXPECT_TRUE(same_bits(o.branches[b].out.to(Device::cpu), got.branches[b].u.to(Device::cpu))) << b;
          EXPECT_TRUE(same_bits(o.branches[b].step.to(Device::cpu), got.branches[b].step.to(Device::cpu))) << b;
        }
        expect_same_bits(plain, got);
      }
}

TEST(CudaNormQuant, BackwardGivesTheSourcesGradientByRows) {
  MMFREE_NEEDS_GPU();
  int turn = 0;
  for (Case c : sources())
    for (int64_t d : {1, 33, 64, 1024, 1408, 2048, 2816, 5632, 8192})
      for (size_t branches : {1, 3})
        for (bool alone : {false, true}) {
          ++turn;
          c.n = turn % 3 ? 5 : 450, c.d = d, c.outer = turn % 4 < 2, c.modes.assign(branches, kValues);
          SCOPED_TRACE(concat(c.name(), alone ? " alone" : ""));
          Problem p = on_gpu(make_problem(c), c);
          const Outputs o = forward(p, c.type, c.modes);
          if (o.x.defined() && turn % 2) p.source = {RowSource::rows, o.x, {}, {}, 0};
          const Gradients plain = backward(p, o.stats, c.type, 0);
          QuantTensor expected = make_gradient_rows(c.n, p.source.a.cols(), c.type, Device::cuda);
          gradient_rows(plain.source.a, expected);
          Gradients got = backward(p, o.stats, c.type, 0);
          got.source.rows = make_gradient_rows(c.n, p.source.a.cols(), c.type, Device::cuda);
          if (alone) got.source.a = {};
          if (turn % 5 < 2)
            got.branches[0].rounding = Rounding::int8, got.branches[0].u = Tensor({c.n, d}, c.type, Device::cuda);
          norm_quant_backward(p.source, p.outer, kEpsInner, o.stats, got.branches, got.source, got.douter, 0);
          EXPECT_TRUE(same_bits(expected.values.to(Device::cpu), got.source.rows.values.to(Device::cpu)));
          EXPECT_TRUE(same_bits(expected.scale.to(Device::cpu), got.source.rows.scale.to(Device::cpu)));
          if (alone) got.source.a = plain.source.a;
          expect_same_bits(plain, got);
        }
}

TEST(CudaNormQuant, RowsOfAGradientShowWhatIsNotFinite) {
  MMFREE_NEEDS_GPU();
  for (Case c : sources())
    for (int64_t d : {33, 64})
      for (double bad : {kNaN, kInfinity}) {
        c.n = 300, c.d = d;
        Problem p = make_problem(c);
        set(p.douts[0], 7 * d + 5, bad);
        p = on_gpu(p, c);
        const Outputs o = forward(p, c.type, c.modes);
        Gradients got = backward(p, o.stats, c.type, 0);
        got.source.rows = make_gradient_rows(c.n, p.source.a.cols(), c.type, Device::cuda);
        norm_quant_backward(p.source, p.outer, kEpsInner, o.stats, got.branches, got.source, got.douter, 0);
        const Tensor steps = from_gpu(got.source.rows.scale);
        for (int64_t n = 0; n < c.n; ++n) EXPECT_EQ(n != 7, std::isfinite(at(steps, n))) << c.name() << " row " << n;
      }
}

TEST(CudaNormQuant, AddsTheIncomingGradientInPlace) {
  MMFREE_NEEDS_GPU();
  for (Case c : sources()) {
    if (c.kind > RowSource::sum) continue;
    for (int64_t d : {33, 64, 8192}) {
      c.d = d, c.n = 9;
      Problem p = on_gpu(make_problem(c), c);
      const Outputs o = forward(p, c.type, c.modes);
      if (o.x.defined()) p.source = {RowSource::rows, o.x, {}, {}, 0};
      Gradients apart = backward(p, o.stats, c.type, 0), in_place = apart;
      in_place.source.a = p.incoming.clone();
      in_place.source.incoming = in_place.source.a;
      norm_quant_backward(p.source, p.outer, kEpsInner, o.stats, in_place.branches, in_place.source, in_place.douter,
                          0);
      EXPECT_TRUE(same_bits(apart.source.a.to(Device::cpu), in_place.source.a.to(Device::cpu)));
    }
  }
}

TEST(CudaNormQuant, GivesTheSameBitsTwice) {
  MMFREE_NEEDS_GPU();
  for (Case c : sources())
    for (int64_t d : {100, 256}) {
      c.n = 2000, c.d = d, c.modes = {kCodes, kBf16, kNone}, c.outer = c.kind <= RowSource::sum;
      const Problem p = on_gpu(make_problem(c), c);
      expect_repeatable([&] {
        const Outputs o = forward(p, c.type, c.modes);
        std::vector<Tensor> all = o.all();
        for (const Tensor& g : backward(p, o.stats, c.type, 0).all()) all.push_back(g);
        return all;
      });
    }
}

TEST(CudaNormQuant, RejectsTooManyBranches) {
  MMFREE_NEEDS_GPU();
  Case c{.modes = {kCodes, kCodes, kCodes, kCodes, kCodes}};
  const Problem p = on_gpu(make_problem(c), c);
  expect_error<ShapeError>({"norm_quant", "1 to 4", "got 5"}, [&] { forward(p, c.type, c.modes); });
}
