// norm_quant and norm_linear over every source: gradients against differences, and what is kept for the backward pass
// changes memory but no bit.
#include <gtest/gtest.h>

#include <deque>

#include "autograd/ops.h"
#include "tests/support/composed.h"
#include "tests/support/glu.h"
#include "tests/support/gradcheck.h"

using namespace mmfree;

namespace {

constexpr double kEps = 0.1, kEpsGate = 0.2;
constexpr Keep kKeeps[] = {Keep::all, Keep::source, Keep::terms, Keep::codes};

Tensor random_f64(Shape shape, uint32_t seed, double scale = 1, double mean = 0) {
  return random_tensor(shape, DType::f64, seed, scale, mean);
}

/// Weight matrices under construction: they must outlive the tape.
class Matrices {
 public:
  Projection plain(const Var& norm, const Var& latent, Rounding rounding = Rounding::none) {
    WeightMatrix& w = all_.emplace_back();
    w.plain = latent.value();
    return {{norm, rounding}, latent, &w};
  }
  Projection ternary(const Var& norm, const Var& latent) {
    WeightMatrix& w = all_.emplace_back();
    w.ternary = make_ternary(latent.dim(0), latent.dim(1), latent.value().dtype());
    ternary_quantise(latent.value(), w.ternary);
    return {{norm, Rounding::int8}, latent, &w};
  }

 private:
  std::deque<WeightMatrix> all_;
};

/// A source of each kind over the first leaves.
struct Kind {
  std::string name;
  size_t leaves;
  std::function<Source(const std::vector<Var>&)> source;
  bool halves = false;
};

const std::vector<Kind>& kinds() {
  static const std::vector<Kind> all = [] {
    std::vector<Kind> list = {
        {"rows", 1, [](const auto& in) { return Source::rows(in[0]); }},
        {"sum", 2, [](const auto& in) { return Source::sum(in[0], in[1]); }},
        {"gate", 3, [](const auto& in) { return Source::gate(in[0], in[1], in[2], kEpsGate); }},
        {"bare gate", 2, [](const auto& in) { return Source::gate(in[0], in[1], Var(), kEpsGate); }},
    };
    for (Activation f : kAllActivations) {
      const auto glu = [f](const auto& in) { return Source::glu(in[0], f); };
      const auto activation = [f](const auto& in) { return Source::activation(in[0], f); };
      list.push_back({concat("glu ", name_of(f)), 1, glu, true});
      list.push_back({concat("activation ", name_of(f)), 1, activation});
    }
    return list;
  }();
  return all;
}

std::vector<Tensor> source_inputs(const Kind& kind, int64_t n, int64_t d) {
  std::vector<Tensor> in{random_f64({n, kind.halves ? 2 * d : d}, 1, 2, 0.3)};
  if (kind.leaves > 1) in.push_back(random_f64({n, d}, 2, 1.5));
  if (kind.leaves > 2) in.push_back(random_f64({d}, 3, 0.5, 1));
  return in;
}

Var constant(const Tensor& t) { return Var(QuantTensor(t)); }

}  // namespace

TEST(NormLinear, GradientsOfEverySourceWithoutOuterNorm) {
  Matrices m;
  for (const Kind& kind : kinds())
    for (auto [n, d] : {std::pair<int64_t, int64_t>{1, 1}, {3, 5}, {4, 33}, {67, 3}}) {
      std::vector<Tensor> in = source_inputs(kind, n, d);
      in.push_back(random_f64({d}, 5, 0.5, 1));
      in.push_back(random_f64({4, d}, 6));
      for (Keep keep : kKeeps)
        EXPECT_TRUE(gradcheck(
            [&](const std::vector<Var>& v) {
              const size_t k = kind.leaves;
              return norm_linear(kind.source(v), Var(), kEps, kEps / 2, {m.plain(v[k], v[k + 1])}, keep);
            },
            in))
            << kind.name << ' ' << n << 'x' << d << " keep " << int(keep);
    }
}

TEST(NormLinear, GradientsOfSeveralProjectionsBehindAnOuterNorm) {
  Matrices m;
  for (const Kind& kind : kinds())
    for (Keep keep : kKeeps) {
      const int64_t n = 3, d = 17;
      std::vector<Tensor> in = source_inputs(kind, n, d);
      for (uint32_t i = 0; i < 4; ++i) in.push_back(random_f64({d}, 5 + i, 0.5, 1));  // outer and three norms
      for (uint32_t i = 0; i < 3; ++i) in.push_back(random_f64({2 + i, d}, 10 + i));
      EXPECT_TRUE(gradcheck(
          [&](const std::vector<Var>& v) {
            const size_t k = kind.leaves;
            return norm_linear(kind.source(v), v[k], kEps, kEps / 2,
                               {m.plain(v[k + 1], v[k + 4]), m.plain(v[k + 2], v[k + 5]), m.plain(v[k + 3], v[k + 6])},
                               keep);
          },
          in))
          << kind.name << " keep " << int(keep);
    }
}

TEST(NormLinear, GradientsWithoutLatents) {
  Matrices m;
  const Tensor w1 = random_f64({4, 9}, 20), w2 = random_f64({5, 9}, 21);
  for (const Kind& kind : kinds())
    for (Keep keep : kKeeps) {
      std::vector<Tensor> in = source_inputs(kind, 3, 9);
      in.push_back(random_f64({9}, 5, 0.5, 1));
      in.push_back(random_f64({9}, 6, 0.5, 1));
      in.push_back(w2);
      EXPECT_TRUE(gradcheck(
          [&](const std::vector<Var>& v) {
            const size_t k = kind.leaves;
            Projection exported = m.plain(v[k], constant(w1));
            exported.latent = Var();
            return norm_linear(kind.source(v), Var(), kEps, kEps, {exported, m.plain(v[k + 1], v[k + 2])}, keep);
          },
          in))
          << kind.name << " keep " << int(keep);
    }
}

TEST(NormLinear, GradientsOfASumThatIsUsedAgain) {
  Matrices m;
  const int64_t n = 4, d = 7;
  const std::vector<Tensor> in{random_f64({n, d}, 1), random_f64({n, d}, 2), random_f64({d}, 3, 0.5, 1),
                               random_f64({d}, 4, 0.5, 1), random_f64({d, d}, 5)};
  for (Keep keep : kKeeps) {
    // Two layers of a residual stream: h + p feeds the product and the next sum, which is used twice over.
    const auto stream = [&](const std::vector<Var>& v) {
      const auto first = norm_linear(Source::sum(v[0], v[1]), v[2], kEps, kEps, {m.plain(v[3], v[4])}, keep);
      const auto second = norm_linear(Source::sum(first[1], first[0]), Var(), kEps, kEps, {m.plain(v[3], v[4])}, keep);
      return std::vector{add(second[0], second[1]), second[1]};
    };
    EXPECT_TRUE(gradcheck(stream, in)) << int(keep);
    // Only the sum, or only the product, reaches the loss.
    for (size_t which : {0, 1})
      EXPECT_TRUE(gradcheck(
          [&](const std::vector<Var>& v) {
            const Var zero = constant(Tensor::zeros({n, d}, DType::f64));
            const auto y = norm_linear(Source::sum(v[0], v[1]), Var(), kEps, kEps,
                                       {m.plain(constant(in[3]), constant(in[4]))}, keep);
            return std::vector{add(y[which], zero)};
          },
          {in[0], in[1]}))
          << int(keep) << " output " << which;
    // The same value on both sides.
    EXPECT_TRUE(gradcheck(
        [&](const std::vector<Var>& v) {
          return norm_linear(Source::sum(v[0], v[0]), Var(), kEps, kEps, {m.plain(v[1], v[2])}, keep);
        },
        {in[0], in[3], in[4]}));
  }
}

TEST(NormQuant, ActivationSourcesFollowTheirFormulas) {
  const Var a{QuantTensor(random_f64({3, 10}, 1, 2))};
  for (Activation f : kAllActivations) {
    const std::vector<Branch> bare{{Var(), Rounding::none}};
    const Var y = norm_quant(Source::glu(a, f), Var(), kEps, kEps, bare)[0];
    const Var z = norm_quant(Source::activation(a, f), Var(), kEps, kEps, bare)[0];
    EXPECT_LE(relative_error(y.value(), composed::glu(f, a.value())), 1e-14) << name_of(f);
    EXPECT_LE(relative_error(z.value(), composed::activation(f, a.value())), 1e-14) << name_of(f);
  }
}

TEST(NormQuant, GradientsOfEverySource) {
  for (const Kind& kind : kinds())
    for (bool outer : {false, true}) {
      std::vector<Tensor> in = source_inputs(kind, 3, 33);
      for (uint32_t i = 0; i < 3; ++i) in.push_back(random_f64({33}, 5 + i, 0.5, 1));
      const auto f = [&](const std::vector<Var>& v) {
        const size_t k = kind.leaves;
        return norm_quant(kind.source(v), outer ? v[k + 2] : Var(), kEps, kEps / 2,
                          {{v[k], Rounding::none}, {v[k + 1], Rounding::none}});
      };
      if (!outer) in.pop_back();
      EXPECT_TRUE(gradcheck(f, in)) << kind.name << ' ' << outer;
    }
}

TEST(NormLinear, GradientsOfBranchesWithoutANorm) {
  Matrices m;
  const Var none;
  for (const Kind& kind : kinds())
    for (bool outer : {false, true})
      for (bool mixed : {false, true})
        for (Keep keep : kKeeps) {
          std::vector<Tensor> in = source_inputs(kind, 3, 9);
          const size_t outer_at = in.size(), norm_at = outer_at + outer, latents = norm_at + mixed;
          for (size_t i = outer_at; i < latents; ++i) in.push_back(random_f64({9}, 5 + uint32_t(i), 0.5, 1));
          for (uint32_t i = 0; i < 3; ++i) in.push_back(random_f64({2 + i, 9}, 10 + i));
          EXPECT_TRUE(gradcheck(
              [&](const std::vector<Var>& v) {
                return norm_linear(kind.source(v), outer ? v[outer_at] : none, kEps, kEps / 2,
                                   {m.plain(none, v[latents]), m.plain(mixed ? v[norm_at] : none, v[latents + 1]),
                                    m.plain(none, v[latents + 2])},
                                   keep);
              },
              in))
              << kind.name << " outer " << outer << " mixed " << mixed << " keep " << int(keep);
        }
}

TEST(NormLinear, EqualsLinearOfNormQuantToTheBit) {
  for (DType t : {DType::f64, DType::f32})
    for (const Kind& kind : kinds())
      for (bool ternary : {false, true})
        for (Keep keep : kKeeps) {
          SCOPED_TRACE(concat(kind.name, ' ', name_of(t), ternary ? " ternary" : " plain", " keep ", int(keep)));
          std::vector<Tensor> in = source_inputs(kind, 5, 33);
          in.push_back(random_f64({33}, 5, 0.5, 1));
          in.push_back(random_f64({33}, 6, 0.5, 1));
          in.push_back(random_f64({7, 33}, 7));
          const size_t k = kind.leaves;
          std::vector<std::vector<Tensor>> found;
          for (bool fused : {false, true}) {
            std::vector<Var> v;
            for (const Tensor& x : in) v.push_back(Var::leaf(as_type(x, t)));
            Matrices m;
            Tape tape;
            const Projection p = ternary ? m.ternary(v[k + 1], v[k + 2]) : m.plain(v[k + 1], v[k + 2], Rounding::bf16);
            std::vector<Var> ys;
            if (fused) {
              ys = norm_linear(kind.source(v), v[k], kEps, kEps, {p}, keep);
            } else {
              ys = norm_quant(kind.source(v), v[k], kEps, kEps, {p.branch});
              ys[0] = linear(ys[0], v[k + 2], *p.matrix);
            }
            std::vector<Tensor> all, cotangents;
            for (const Var& y : ys) {
              all.push_back(y.value());
              cotangents.push_back(random_tensor(y.shape(), t, 40));
            }
            tape.backward(weighted_sum(ys, cotangents));
            for (const Var& leaf : v) all.push_back(leaf.grad());
            found.push_back(all);
          }
          for (size_t i = 0; i < found[0].size(); ++i) EXPECT_TRUE(same_bits(found[0][i], found[1][i])) << i;
        }
}

namespace {

/// A channel mixer and a token mixer in small: every use that a kept, forgotten or recomputed output has.
struct MiniBlock {
  static constexpr int64_t kBatch = 2, n = 10, d = 33, inner = 19;
  enum class Precision { none, bf16, ternary } precision;
  std::vector<Var> v;
  Matrices m;

  MiniBlock(Precision precision, DType t) : precision(precision) {
    const std::vector<Shape> shapes = {{n, d}, {n, d}, {d}, {d}, {2 * inner, d}, {inner}, {d, inner}, {d}, {d, d},
                                       {d},    {d, d}, {d}, {d}, {d, d}};
    uint32_t seed = 1;
    for (const Shape& s : shapes) v.push_back(Var::leaf(random_tensor(s, t, seed++, 0.5, s.rank() == 1 ? 1 : 0)));
  }
  Projection projection(size_t norm, size_t latent) {
    if (precision == Precision::ternary) return m.ternary(v[norm], v[latent]);
    return m.plain(v[norm], v[latent], precision == Precision::bf16 ? Rounding::bf16 : Rounding::none);
  }
  std::vector<Var> operator()(Keep keep) {
    const auto y = norm_linear(Source::sum(v[0], v[1]), v[2], kEps, kEps, {projection(3, 4)}, keep);
    const auto o = norm_linear(Source::glu(y[0], Activation::silu), Var(), kEps, kEps, {projection(5, 6)}, keep);
    const auto az =
        norm_linear(Source::sum(y[1], o[0]), Var(), kEps, kEps, {projection(7, 8), projection(9, 10)}, keep);
    const Var s = mlgru_scan(az[1], az[0], Var(), kBatch);
    const Source gate = Source::gate(s, az[0], v[11], kEpsGate);
    const auto g = norm_linear(gate, Var(), kEps, kEps, {projection(12, 13)}, keep);
    return {g[0], az[2]};
  }
};

}  // namespace

TEST(NormLinear, WhatIsKeptChangesNoBit) {
  for (auto precision : {MiniBlock::Precision::none, MiniBlock::Precision::bf16, MiniBlock::Precision::ternary})
    for (DType t : {DType::f64, DType::f32}) {
      std::vector<Tensor> first;
      for (Keep keep : kKeeps) {
        MiniBlock block(precision, t);
        Tape tape;
        const std::vector<Var> ys = block(keep);
        std::vector<Tensor> all{ys[0].value(), ys[1].value()};
        tape.backward(weighted_sum(ys, {random_tensor(ys[0].shape(), t, 50), random_tensor(ys[1].shape(), t, 51)}));
        for (const Var& leaf : block.v) {
          ASSERT_TRUE(leaf.grad().defined());
          EXPECT_GT(sum_of_squares(leaf.grad()), 0);
          all.push_back(leaf.grad());
        }
        if (first.empty()) first = all;
        for (size_t i = 0; i < all.size(); ++i)
          EXPECT_TRUE(same_bits(first[i], all[i]))
              << name_of(t) << " precision " << int(precision) << " keep " << int(keep) << " tensor " << i;
      }
    }
}

TEST(NormLinear, KeepsWhatItSaysAndNoMore) {
  const int64_t n = 64, d = 128, inner = 256;
  const int64_t codes = n * d + 4 * n, output = 4 * n * 2 * inner;
  // The source's rows, two norms' statistics and weights, the ternary matrix and its scale.
  const int64_t always = 4 * n * d + 2 * 4 * n + 2 * 4 * d + 2 * inner * ternary_row_bytes(d) + 4;
  std::map<Keep, size_t> live;
  for (Keep keep : kKeeps) {
    const auto arena = Arena::host();
    const ArenaScope scope(arena);
    const Var x = Var::leaf(random_tensor({n, d}, DType::f32, 1)), outer = Var::leaf(full({d}, DType::f32, 1));
    const Var norm = Var::leaf(full({d}, DType::f32, 1)), w = Var::leaf(random_tensor({2 * inner, d}, DType::f32, 2));
    Matrices m;
    const Projection p = m.ternary(norm, w);
    const size_t before = arena->stats().live;
    Tape tape;
    Var z;
    {
      const Var y = norm_linear(Source::rows(x), outer, kEps, kEps, {p}, keep)[0];
      EXPECT_EQ(keep == Keep::codes, y.recipe() != nullptr);
      z = glu(y);
    }
    const auto bytes = tape.saved_bytes();
    EXPECT_EQ(always + (keep == Keep::all ? codes : 0), bytes.at("norm_linear")) << int(keep);
    EXPECT_EQ(keep == Keep::codes ? 0 : output, bytes.at("norm_quant")) << int(keep);
    live[keep] = arena->stats().live - before;
  }
  EXPECT_EQ(size_t(codes), live[Keep::all] - live[Keep::source]);
  EXPECT_EQ(live[Keep::source], live[Keep::terms]);
  EXPECT_EQ(size_t(output - codes), live[Keep::source] - live[Keep::codes]);
  // The codes, what the norm leaves (its statistics) and what glu gives (n x inner).
  EXPECT_EQ(size_t(codes + 2 * 4 * n + 4 * n * inner), live[Keep::codes]);
}

TEST(NormLinear, RecipesNoticeSourcesModifiedInPlace) {
  const Var x = Var::leaf(random_f64({3, 4}, 1)), norm = Var::leaf(random_f64({4}, 2)),
            w = Var::leaf(random_f64({6, 4}, 3));
  Matrices m;
  Tape tape;
  const Var y = norm_linear(Source::rows(x), Var(), kEps, kEps, {m.plain(norm, w)}, Keep::codes)[0];
  const Var z = glu(y);
  Tensor changed = x.value();
  changed.mut<double>()[5] = 7;
  const Var loss = weighted_sum({z}, {full({3, 3}, DType::f64, 1)});
  expect_error<Error>({"norm_linear", "modified in place"}, [&] { tape.backward(loss); });
}

TEST(NormLinear, TakesAtMostFourProjections) {
  const Var x = Var::leaf(random_f64({3, 4}, 1)), norm = Var::leaf(random_f64({4}, 2)),
            w = Var::leaf(random_f64({6, 4}, 3));
  Matrices m;
  const std::vector<Projection> five(5, m.plain(norm, w));
  expect_error<ShapeError>({"norm_linear", "up to 4 projections", "got 5"},
                           [&] { norm_linear(Source::rows(x), Var(), kEps, kEps, five, Keep::all); });
}
