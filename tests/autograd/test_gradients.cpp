#include <gtest/gtest.h>

#include <cstring>

#include "autograd/ops.h"
#include "core/ops/embedding.h"
#include "core/ops/gate_norm.h"
#include "core/ops/lower_bounds.h"
#include "core/ops/mlgru_scan.h"
#include "tests/support/composed.h"
#include "tests/support/glu.h"
#include "tests/support/gradcheck.h"
#include "tests/support/starts.h"

using namespace mmfree;

namespace {

/// Large enough that the normalisation of a single column still has a slope.
constexpr double kEps = 0.1;

Tensor random_f64(Shape shape, uint32_t seed, double scale = 1, double mean = 0) {
  return random_tensor(shape, DType::f64, seed, scale, mean);
}

Tensor some_targets(int64_t n, int64_t v) {
  Tensor targets = random_ids(n, v, 5);
  if (n > 2) targets.mut<int32_t>()[2] = kIgnoreTarget;
  return targets;
}

WeightMatrix plain(const Var& w) {
  WeightMatrix m;
  m.plain = w.value();
  return m;
}

WeightMatrix ternary(const Tensor& latent) {
  WeightMatrix m;
  m.ternary = make_ternary(latent.dim(0), latent.dim(1), latent.dtype());
  ternary_quantise(latent, m.ternary);
  return m;
}

Tensor dense(const WeightMatrix& w) {
  if (!w.is_ternary()) return w.plain;
  Tensor out({w.rows(), w.cols()}, w.ternary.scale.dtype());
  ternary_dequantise(w.ternary, out);
  return out;
}

std::vector<Var> two_branches(const Var& x, const Var& outer, const Var& w1, const Var& w2, double eps) {
  return norm_quant(Source::rows(x), outer, eps, eps / 2, {{w1, Rounding::none}, {w2, Rounding::none}});
}

/// The gradient of <c, y> at every leaf, where c are the cotangents that weighted_sum gets.
std::vector<Tensor> gradients(const std::vector<Var>& leaves, const Computation& f, const std::vector<Tensor>& c) {
  Tape tape;
  tape.backward(weighted_sum(f(leaves), c));
  std::vector<Tensor> all;
  for (const Var& leaf : leaves) all.push_back(leaf.grad());
  return all;
}

}  // namespace

TEST(Gradients, Add) {
  for (int64_t d : kOddColumns)
    EXPECT_TRUE(gradcheck([](const auto& in) { return std::vector{add(add(in[0], in[1]), in[0])}; },
                          {random_f64({2, d}, 1), random_f64({2, d}, 2)}));
}

TEST(Gradients, Embedding) {
  for (int64_t d : kOddColumns) {
    const Tensor ids = random_ids(9, 4, 1);
    EXPECT_TRUE(gradcheck([&](const auto& in) { return std::vector{embedding(in[0], ids, DType::f64)}; },
                          {random_f64({5, d}, 1)}));
  }
}

TEST(Gradients, NormQuantWithoutRounding) {
  for (int64_t d : kOddColumns)
    for (int64_t n : {1, 3, 67}) {
      if (n * d > 10000) continue;
      const Tensor x = random_f64({n, d}, 1, 2, 0.3), outer = random_f64({d}, 2, 0.5, 1);
      const Tensor w1 = random_f64({d}, 3), w2 = random_f64({d}, 4);
      EXPECT_TRUE(
          gradcheck([](const auto& in) { return two_branches(in[0], in[1], in[2], in[3], kEps); }, {x, outer, w1, w2}))
          << n << 'x' << d;
      EXPECT_TRUE(gradcheck([](const auto& in) { return two_branches(in[0], Var(), in[1], in[2], kEps); }, {x, w1, w2}))
          << n << 'x' << d;
      EXPECT_TRUE(gradcheck([](const auto& in) { return std::vector{rmsnorm(in[0], in[1], kEps)}; }, {x, w1}));
    }
}

TEST(Gradients, GateNorm) {
  for (int64_t d : kOddColumns)
    for (int64_t n : {1, 3}) {
      const Tensor a = random_f64({n, d}, 1), b = random_f64({n, d}, 2, 2), w = random_f64({d}, 3);
      EXPECT_TRUE(
          gradcheck([](const auto& in) { return std::vector{gate_norm(in[0], in[1], in[2], kEps)}; }, {a, b, w}))
          << n << 'x' << d;
      EXPECT_TRUE(gradcheck([](const auto& in) { return std::vector{gate_norm(in[0], in[1], Var(), kEps)}; }, {a, b}))
          << n << 'x' << d;
    }
}

TEST(Gradients, MlgruScan) {
  for (int64_t d : kOddColumns)
    for (auto [b, t] : {std::pair<int64_t, int64_t>{1, 1}, {2, 6}}) {
      const Tensor z = random_f64({b * t, d}, 1), a = random_f64({b * t, d}, 2, 2), h0 = random_f64({b, d}, 4);
      const Tensor gamma = random_f64({d}, 3, 0.05, 0.5);
      for (const Tensor& start : {Tensor(), h0})
        for (const Tensor& starts : {Tensor(), some_starts(b, t).reshape({b * t})}) {
          const auto scan = [&, b = b](const Var& z, const Var& a, const Var& gamma) {
            Tensor state = start;
            return std::vector{mlgru_scan(z, a, gamma, b, &state, starts)};
          };
          EXPECT_TRUE(gradcheck([&](const auto& in) { return scan(in[0], in[1], in[2]); }, {z, a, gamma}))
              << b << 'x' << t << 'x' << d << " starts " << starts.defined();
          EXPECT_TRUE(gradcheck([&](const auto& in) { return scan(in[0], in[1], Var()); }, {z, a}));
        }
    }
}

TEST(Gradients, Attention) {
  constexpr int64_t kBatch = 2, kSteps = 9;
  for (const AttentionShape& shape :
       {AttentionShape{2, 2, 8, 0, 100}, AttentionShape{4, 2, 8, 3, 10000}, AttentionShape{3, 1, 16, 0, 10}})
    for (bool cached : {false, true})
      for (bool marked : {false, true}) {
        const Shape queries{kBatch * kSteps, shape.heads * shape.width},
            keys{kBatch * kSteps, shape.kv_heads * shape.width};
        const Tensor starts = marked ? some_starts(kBatch, kSteps).reshape({kBatch * kSteps}) : Tensor();
        KeyCache before;
        if (cached)
          attention(Var(random_f64({kBatch * 5, queries[1]}, 5)), Var(random_f64({kBatch * 5, keys[1]}, 6)),
                    Var(random_f64({kBatch * 5, keys[1]}, 7)), shape, kBatch, &before);
        const auto f = [&](const std::vector<Var>& in) {
          KeyCache cache = before;
          return std::vector{attention(in[0], in[1], in[2], shape, kBatch, cached ? &cache : nullptr, starts)};
        };
        EXPECT_TRUE(gradcheck(f, {random_f64(queries, 1), random_f64(keys, 2), random_f64(keys, 3)}))
            << shape.heads << '/' << shape.kv_heads << " cached " << cached << " starts " << marked;
      }
}

TEST(Gradients, GluOfTwoTensors) {
  for (Activation f : kAllActivations)
    EXPECT_TRUE(gradcheck(
        [f](const std::vector<Var>& in) {
          return norm_quant(Source::glu(in[0], in[1], f), in[2], kEps, kEps, {{Var(), Rounding::none}});
        },
        {random_f64({3, 33}, 1), random_f64({3, 33}, 2), random_f64({33}, 3, 0.5, 1)}))
        << name_of(f);
}

TEST(Gradients, Swiglu) {
  for (int64_t inner : kOddColumns)
    for (int64_t n : {1, 3})
      EXPECT_TRUE(
          gradcheck([](const auto& in) { return std::vector{glu(in[0])}; }, {random_f64({n, 2 * inner}, 1, 2)}));
}

TEST(Gradients, LowerBounds) {
  for (int64_t d : kOddColumns)
    for (int64_t layers : {1, 2, 5})
      EXPECT_TRUE(gradcheck([](const auto& in) { return lower_bounds(in[0]); }, {random_f64({layers, d}, 1)}));
}

TEST(Gradients, PlainLinear) {
  for (int64_t k : kOddColumns)
    for (auto [n, o] : {std::pair<int64_t, int64_t>{1, 3}, {3, 31}, {5, 1}})
      EXPECT_TRUE(gradcheck([](const auto& in) { return std::vector{linear(in[0], in[1], plain(in[1]))}; },
                            {random_f64({n, k}, 1), random_f64({o, k}, 2)}))
          << n << 'x' << o << 'x' << k;
}

TEST(Gradients, HeadLossWithPlainWeights) {
  for (int64_t v : {3, 31, 127})
    for (int64_t n : {1, 9}) {
      const Tensor targets = some_targets(n, v);
      EXPECT_TRUE(
          gradcheck([&](const auto& in) { return std::vector{head_loss(in[0], in[1], plain(in[1]), targets, 0.25)}; },
                    {random_f64({n, 33}, 1), random_f64({v, 33}, 2, 0.3)}))
          << n << ' ' << v;
    }
}

TEST(Gradients, AWholeLayer) {
  const int64_t d = 31, inner = 33, n = 6;
  const Tensor ids = random_ids(n, 7, 9), targets = some_targets(n, 7);
  const auto layer = [&](const std::vector<Var>& p) {
    const Var x = embedding(p[0], ids, DType::f64);
    const std::vector<Var> u = two_branches(x, p[1], p[2], p[3], 1e-5);
    const std::vector<Var> gamma = lower_bounds(p[4]);
    const Var h = mlgru_scan(linear(u[0], p[5], plain(p[5])), u[1], gamma[1], 2);
    const Var mixed = add(x, gate_norm(u[1], h, p[6], 1e-5));
    const Var y = glu(linear(rmsnorm(mixed, p[7], 1e-5), p[8], plain(p[8])));
    const Var out = add(mixed, linear(y, p[9], plain(p[9])));
    return std::vector{head_loss(out, p[0], plain(p[0]), targets, 0.5)};
  };
  EXPECT_TRUE(
      gradcheck(layer, {random_f64({7, d}, 1), random_f64({d}, 2), random_f64({d}, 3), random_f64({d}, 4),
                        random_f64({3, d}, 5), random_f64({d, d}, 6, 0.3), random_f64({d}, 7), random_f64({d}, 8),
                        random_f64({2 * inner, d}, 9, 0.3), random_f64({d, inner}, 10, 0.3)}));
}

/// The straight-through rule, from the graph u + detach(Q(u) − u): products see quantised values, and so does each
/// other factor's gradient; the norm before the rounding sees the gradient of its rounded output.
TEST(StraightThrough, TernaryLinearAfterAnInt8Norm) {
  for (int64_t d : kOddColumns) {
    const int64_t n = 5, o = 33;
    const Tensor latent = random_f64({o, d}, 4, 0.02), c = random_f64({n, o}, 5);
    const WeightMatrix w = ternary(latent);
    const std::vector<Var> leaves{Var::leaf(random_f64({n, d}, 1, 2)), Var::leaf(random_f64({d}, 2, 0.5, 1)),
                                  Var::leaf(random_f64({d}, 3, 0.5, 1)), Var::leaf(latent)};
    QuantTensor codes;
    const auto found =
        gradients(leaves,
                  [&](const std::vector<Var>& p) {
                    const Var u = norm_quant(Source::rows(p[0]), p[1], kEps, kEps, {{p[2], Rounding::int8}})[0];
                    codes = u.quant();
                    return std::vector{linear(u, p[3], w)};
                  },
                  {c});
    const Tensor quantised = composed::dequantised(codes.values, codes.scale);
    EXPECT_LE(relative_error(found[3], composed::product(c, true, quantised, false)), 1e-12) << d;
    const Tensor du = composed::product(c, false, dense(w), false);
    const auto unrounded =
        gradients({Var::leaf(leaves[0].value()), Var::leaf(leaves[1].value()), Var::leaf(leaves[2].value())},
                  [&](const std::vector<Var>& p) {
                    return norm_quant(Source::rows(p[0]), p[1], kEps, kEps, {{p[2], Rounding::none}});
                  },
                  {du});
    for (size_t i = 0; i < 3; ++i) EXPECT_LE(relative_error(found[i], unrounded[i]), 1e-10) << d << " input " << i;
  }
}

TEST(StraightThrough, Bfloat16Branch) {
  const Tensor c = random_f64({3, 33}, 5);
  std::vector<Tensor> found[2];
  for (int i : {0, 1})
    found[i] = gradients(
        {Var::leaf(random_f64({3, 33}, 1)), Var::leaf(random_f64({33}, 2))},
        [&](const std::vector<Var>& p) {
          return norm_quant(Source::rows(p[0]), Var(), kEps, kEps, {{p[1], i ? Rounding::bf16 : Rounding::none}});
        },
        {c});
  for (size_t i = 0; i < 2; ++i) EXPECT_TRUE(same_bits(found[0][i], found[1][i]));
}

TEST(StraightThrough, TernaryHeadLoss) {
  const int64_t n = 9, v = 31, k = 33;
  const Tensor latent = random_f64({v, k}, 1, 0.1), targets = some_targets(n, v);
  const WeightMatrix w = ternary(latent);
  const Var x = Var::leaf(random_f64({n, k}, 2)), weight = Var::leaf(full({k}, DType::f64, 1)),
            head = Var::leaf(latent);
  QuantTensor codes;
  {
    Tape tape;
    const Var u = norm_quant(Source::rows(x), Var(), kEps, kEps, {{weight, Rounding::int8}})[0];
    codes = u.quant();
    tape.backward(head_loss(u, head, w, targets, 0.25));
  }
  const Tensor quantised = composed::dequantised(codes.values, codes.scale);
  const Tensor dlogits =
      composed::cross_entropy(composed::product(quantised, false, dense(w), true), targets, 0.25).dlogits;
  EXPECT_LE(relative_error(head.grad(), composed::product(dlogits, true, quantised, false)), 1e-11);
  const Tensor du = composed::product(dlogits, false, dense(w), false);
  const auto unrounded = gradients({Var::leaf(x.value()), Var::leaf(weight.value())},
                                   [](const auto& p) { return std::vector{rmsnorm(p[0], p[1], kEps)}; }, {du});
  EXPECT_LE(relative_error(x.grad(), unrounded[0]), 1e-10);
  EXPECT_LE(relative_error(weight.grad(), unrounded[1]), 1e-10);
}
