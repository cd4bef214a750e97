#include <gtest/gtest.h>

#include "autograd/ops.h"
#include "core/ops/embedding.h"
#include "core/ops/gate_norm.h"
#include "core/ops/lower_bounds.h"
#include "core/ops/mlgru_scan.h"
#include "tests/support/composed.h"
#include "tests/support/glu.h"
#include "tests/support/gradcheck.h"

/// The gradient check must reject plausible mistakes: every test here records a right forward pass with a backward pass
/// that is wrong in one place. Mistake 0 is none: it must pass.
using namespace mmfree;

namespace {

constexpr double kEps = 0.1;

Tensor random_f64(Shape shape, uint32_t seed, double scale = 1, double mean = 0) {
  return random_tensor(shape, DType::f64, seed, scale, mean);
}

Tensor times(const Tensor& a, double factor) {
  Tensor y = a.clone();
  for (int64_t i = 0; i < y.size(); ++i) set(y, i, at(a, i) * factor);
  return y;
}

void expect_only_the_first_passes(int mistakes, const std::vector<Tensor>& inputs,
                                  const std::function<Computation(int)>& computation) {
  EXPECT_TRUE(gradcheck(computation(0), inputs));
  for (int mistake = 1; mistake <= mistakes; ++mistake)
    EXPECT_FALSE(gradcheck(computation(mistake), inputs)) << "mistake " << mistake << " passes";
}

}  // namespace

TEST(GradcheckRejects, RmsNormMistakes) {
  enum { no_mean_term = 1, no_weight, weight_gradient_of_raw_input, mean_over_one_too_few, stale_r };
  const auto mutant = [](int mistake) -> Computation {
    return [mistake](const std::vector<Var>& in) {
      Tensor y(in[0].shape(), DType::f64), none;
      std::vector<NormBranch> branch{{in[1].value(), Rounding::none, y, {}}};
      RowSource source;
      source.a = in[0].value();
      NormStats stats = make_norm_stats(source, {}, branch);
      norm_quant(source, {}, kEps, kEps, branch, stats, none);
      return record("mutant", in, {y}, {in[0], in[1], stats.r2}, [mistake](const BackwardCtx& c) {
        const Tensor &x = c.saved(0), &w = c.saved(1), &r = c.saved(2), dy = c.out_grad();
        const int64_t n = x.dim(0), d = x.dim(1);
        Tensor dx = Tensor::zeros({n, d}, DType::f64), dw = Tensor::zeros({d}, DType::f64);
        for (int64_t i = 0; i < n; ++i) {
          const double scale = at(r, mistake == stale_r ? 0 : i);
          const auto s = [&](int64_t k) { return at(dy, i * d + k) * (mistake == no_weight ? 1 : at(w, k)); };
          double mean = 0;
          for (int64_t k = 0; k < d; ++k) mean += at(x, i * d + k) * scale * s(k);
          mean /= double(mistake == mean_over_one_too_few ? d - 1 : d);
          if (mistake == no_mean_term) mean = 0;
          for (int64_t k = 0; k < d; ++k) {
            const double normed = at(x, i * d + k) * scale;
            set(dx, i * d + k, scale * (s(k) - normed * mean));
            const double factor = mistake == weight_gradient_of_raw_input ? at(x, i * d + k) : normed;
            set(dw, k, at(dw, k) + at(dy, i * d + k) * factor);
          }
        }
        c.pass(0, dx);
        c.pass(1, dw);
      });
    };
  };
  for (int64_t d : {3, 33, 127})
    expect_only_the_first_passes(stale_r, {random_f64({3, d}, 1, 2), random_f64({d}, 2, 0.5, 1)}, mutant);
}

TEST(GradcheckRejects, SwigluMistakes) {
  enum { wrong_slope = 1, plain_sigmoid_slope, swapped_halves, only_first_row };
  const auto mutant = [](int mistake) -> Computation {
    return [mistake](const std::vector<Var>& in) {
      const Tensor y = glu(Var(QuantTensor(in[0].value()))).value();
      return record("mutant", in, {y}, {in[0].value()}, [mistake](const BackwardCtx& c) {
        const Tensor &x = c.saved(0), dy = c.out_grad();
        const int64_t inner = x.cols() / 2;
        Tensor dx = Tensor::zeros(x.shape(), DType::f64);
        for (int64_t n = 0; n < (mistake == only_first_row ? 1 : x.rows()); ++n)
          for (int64_t k = 0; k < inner; ++k) {
            const int64_t gate = n * 2 * inner + k, up = gate + inner;
            const double g = at(x, gate), s = composed::sigmoid(g), dout = at(dy, n * inner + k);
            const double slope = mistake == wrong_slope           ? s * (1 + g)
                                 : mistake == plain_sigmoid_slope ? s * (1 - s)
                                                                  : s * (1 + g * (1 - s));
            set(dx, mistake == swapped_halves ? up : gate, dout * at(x, up) * slope);
            set(dx, mistake == swapped_halves ? gate : up, dout * g * s);
          }
        c.pass(0, dx);
      });
    };
  };
  for (int64_t inner : {1, 33}) expect_only_the_first_passes(only_first_row, {random_f64({3, 2 * inner}, 1)}, mutant);
}

TEST(GradcheckRejects, ScanMistakes) {
  enum { no_carry = 1, no_rest_of_gamma, late_state, gamma_of_one_sequence, no_start };
  const auto mutant = [](int mistake) -> Computation {
    return [mistake](const std::vector<Var>& in) {
      const Shape full_shape{2, in[0].dim(0) / 2, in[0].dim(1)};
      const Tensor z = in[0].value().reshape(full_shape), a = in[1].value().reshape(full_shape);
      const Tensor h0 = random_f64({2, in[0].dim(1)}, 8);
      Tensor h(full_shape, DType::f64), last;
      mlgru_scan(z, a, in[2].value(), h0, {}, h, last);
      return record(
          "mutant", in, {h.reshape(in[0].shape())}, {z, a, in[2].value(), h0, h}, [mistake](const BackwardCtx& c) {
            const Tensor &z = c.saved(0), &a = c.saved(1), &gamma = c.saved(2), &h0 = c.saved(3), &h = c.saved(4);
            const Tensor dh = c.out_grad();
            const int64_t steps = z.dim(1), d = z.dim(2);
            Tensor dz(z.shape(), DType::f64), da(z.shape(), DType::f64), dgamma = Tensor::zeros({d}, DType::f64);
            for (int64_t b = 0; b < 2; ++b)
              for (int64_t k = 0; k < d; ++k) {
                double carry = 0;
                const double rest = 1 - at(gamma, k);
                for (int64_t t = steps - 1; t >= 0; --t) {
                  const int64_t i = (b * steps + t) * d + k;
                  const double s = composed::sigmoid(at(z, i)), f = at(gamma, k) + rest * s;
                  const double sa = composed::sigmoid(at(a, i)), start = mistake == no_start ? 0 : at(h0, b * d + k);
                  const double before = mistake == late_state ? at(h, i) : t ? at(h, i - d) : start;
                  const double grad = at(dh, i) + (mistake == no_carry ? 0 : carry);
                  const double df = grad * (before - at(a, i) * sa);
                  set(da, i, grad * (1 - f) * sa * (1 + at(a, i) * (1 - sa)));
                  set(dz, i, df * (mistake == no_rest_of_gamma ? 1 : rest) * s * (1 - s));
                  if (mistake != gamma_of_one_sequence || b) set(dgamma, k, at(dgamma, k) + df * (1 - s));
                  carry = grad * f;
                }
              }
            c.pass(0, dz);
            c.pass(1, da);
            c.pass(2, dgamma);
          });
    };
  };
  for (int64_t d : {1, 33})
    expect_only_the_first_passes(
        no_start, {random_f64({10, d}, 1), random_f64({10, d}, 2), random_f64({d}, 3, 0.05, 0.5)}, mutant);
}

TEST(GradcheckRejects, EmbeddingMistakes) {
  enum { duplicates_overwrite = 1, off_by_one_row };
  const auto mutant = [](int mistake) -> Computation {
    return [mistake](const std::vector<Var>& in) {
      const Tensor ids = random_ids(9, 4, 1);
      Tensor y({9, in[0].dim(1)}, DType::f64);
      embedding(in[0].value(), ids, y);
      return record("mutant", in, {y}, {ids}, [mistake](const BackwardCtx& c) {
        const Tensor dy = c.out_grad();
        const int64_t d = dy.cols();
        Tensor dtable = Tensor::zeros({5, d}, DType::f64);
        for (int64_t n = 0; n < 9; ++n)
          for (int64_t k = 0; k < d; ++k) {
            const int64_t to = (c.saved(0).data<int32_t>()[n] + (mistake == off_by_one_row)) * d + k;
            set(dtable, to, at(dy, n * d + k) + (mistake == duplicates_overwrite ? 0 : at(dtable, to)));
          }
        c.pass(0, dtable);
      });
    };
  };
  expect_only_the_first_passes(off_by_one_row, {random_f64({5, 33}, 1)}, mutant);
}

TEST(GradcheckRejects, HeadLossMistakes) {
  enum { no_onehot = 1, no_scale, scores_ignored_rows };
  const auto mutant = [](int mistake) -> Computation {
    return [mistake](const std::vector<Var>& in) {
      Tensor targets = random_ids(5, 7, 1);
      targets.mut<int32_t>()[3] = kIgnoreTarget;
      WeightMatrix w;
      w.plain = in[1].value();
      const Var loss = head_loss(Var(QuantTensor(in[0].value())), Var(), w, targets, 0.25);
      return record("mutant", in, {loss.value()}, {in[0].value(), w.plain, targets}, [mistake](const BackwardCtx& c) {
        const Tensor &q = c.saved(0), &w = c.saved(1), &targets = c.saved(2);
        Tensor scored = targets.clone();
        if (mistake == scores_ignored_rows) scored.mut<int32_t>()[3] = 0;
        Tensor dlogits =
            composed::cross_entropy(composed::product(q, false, w, true), scored, mistake == no_scale ? 1 : 0.25)
                .dlogits;
        if (mistake == no_onehot)
          for (int64_t n = 0; n < 5; ++n)
            if (const int32_t t = targets.data<int32_t>()[n]; t >= 0)
              set(dlogits, n * 7 + t, at(dlogits, n * 7 + t) + 0.25);
        c.pass(0, composed::product(dlogits, false, w, false));
        c.pass(1, composed::product(dlogits, true, q, false));
      });
    };
  };
  expect_only_the_first_passes(scores_ignored_rows, {random_f64({5, 3}, 1), random_f64({7, 3}, 2)}, mutant);
}

TEST(GradcheckRejects, LowerBoundMistakes) {
  enum { no_softmax_term = 1, counts_layer_zero, shifted_by_a_layer };
  const auto mutant = [](int mistake) -> Computation {
    return [mistake](const std::vector<Var>& in) {
      Tensor gamma(in[0].shape(), DType::f64);
      lower_bounds(in[0].value(), gamma);
      return record("mutant", in, {gamma}, {in[0].value()}, [mistake](const BackwardCtx& c) {
        const Tensor &lambda = c.saved(0), dgamma = c.out_grad();
        const int64_t layers = lambda.dim(0), d = lambda.dim(1);
        Tensor dlambda(lambda.shape(), DType::f64);
        for (int64_t k = 0; k < d; ++k) {
          double total = 0, sum = 0, mean = 0;
          std::vector<double> p, dp(static_cast<size_t>(layers));
          for (int64_t l = 0; l < layers; ++l) total += std::exp(at(lambda, l * d + k));
          for (int64_t l = 0; l < layers; ++l) p.push_back(std::exp(at(lambda, l * d + k)) / total);
          for (int64_t l = layers - 1; l >= 0; --l) {
            if (mistake != shifted_by_a_layer) sum += at(dgamma, l * d + k);
            dp[size_t(l)] = l || mistake == counts_layer_zero ? sum : 0;
            if (mistake == shifted_by_a_layer) sum += at(dgamma, l * d + k);
            mean += p[size_t(l)] * dp[size_t(l)];
          }
          for (int64_t l = 0; l < layers; ++l)
            set(dlambda, l * d + k, p[size_t(l)] * (dp[size_t(l)] - (mistake == no_softmax_term ? 0 : mean)));
        }
        c.pass(0, dlambda);
      });
    };
  };
  expect_only_the_first_passes(shifted_by_a_layer, {random_f64({4, 31}, 1)}, mutant);
}

TEST(GradcheckRejects, GateNormMistakes) {
  enum { no_mean_term = 1, gate_with_sigmoid_slope, weight_twice };
  const auto mutant = [](int mistake) -> Computation {
    return [mistake](const std::vector<Var>& in) {
      Tensor y(in[0].shape(), DType::f64), r({in[0].dim(0)}, DType::f64);
      gate_norm(in[0].value(), in[1].value(), in[2].value(), kEps, y, r);
      return record(
          "mutant", in, {y}, {in[0].value(), in[1].value(), in[2].value(), r}, [mistake](const BackwardCtx& c) {
            const Tensor &a = c.saved(0), &b = c.saved(1), &w = c.saved(2), &r = c.saved(3), dy = c.out_grad();
            const int64_t n = a.dim(0), d = a.dim(1);
            Tensor da(a.shape(), DType::f64), db(a.shape(), DType::f64), dw = Tensor::zeros({d}, DType::f64);
            for (int64_t i = 0; i < n; ++i) {
              double mean = 0;
              const auto up = [&](int64_t k) {
                return at(dy, i * d + k) * composed::silu(at(b, i * d + k)) * at(w, k) *
                       (mistake == weight_twice ? at(w, k) : 1);
              };
              for (int64_t k = 0; k < d; ++k) mean += at(a, i * d + k) * at(r, i) * up(k) / double(d);
              if (mistake == no_mean_term) mean = 0;
              for (int64_t k = 0; k < d; ++k) {
                const int64_t j = i * d + k;
                const double normed = at(a, j) * at(r, i), g = at(b, j), s = composed::sigmoid(g);
                set(da, j, at(r, i) * (up(k) - normed * mean));
                set(db, j,
                    at(dy, j) * normed * at(w, k) *
                        (mistake == gate_with_sigmoid_slope ? s * (1 - s) : s * (1 + g * (1 - s))));
                set(dw, k, at(dw, k) + at(dy, j) * composed::silu(g) * normed);
              }
            }
            c.pass(0, da);
            c.pass(1, db);
            c.pass(2, dw);
          });
    };
  };
  expect_only_the_first_passes(weight_twice, {random_f64({3, 33}, 1), random_f64({3, 33}, 2), random_f64({33}, 3)},
                               mutant);
}

TEST(GradcheckRejects, LinearMistakes) {
  enum { transposed_weight = 1, transposed_gradient, weight_gradient_of_one_row };
  const auto mutant = [](int mistake) -> Computation {
    return [mistake](const std::vector<Var>& in) {
      WeightMatrix w;
      w.plain = in[1].value();
      Tensor y({in[0].dim(0), in[1].dim(0)}, DType::f64);
      linear(QuantTensor(in[0].value()), w, y);
      return record("mutant", in, {y}, {in[0].value(), w.plain}, [mistake](const BackwardCtx& c) {
        const Tensor &x = c.saved(0), &w = c.saved(1), dy = c.out_grad();
        c.pass(0, composed::product(dy, false, w, mistake == transposed_weight));
        c.pass(1, mistake == transposed_gradient ? composed::product(x, true, dy, false)
                  : mistake == weight_gradient_of_one_row
                      ? composed::product(dy.slice(0, 1), true, x.slice(0, 1), false)
                      : composed::product(dy, true, x, false));
      });
    };
  };
  expect_only_the_first_passes(weight_gradient_of_one_row, {random_f64({3, 31}, 1), random_f64({31, 31}, 2)}, mutant);
}

TEST(GradcheckRejects, GradientsThatOverwriteInsteadOfAccumulate) {
  enum { ignores_beta = 1, accumulates_over_twice };
  const auto mutant = [](int mistake) -> Computation {
    return [mistake](const std::vector<Var>& in) {
      Tensor y(in[0].shape(), DType::f64);
      add(in[0].value(), in[0].value(), y);
      const Var twice = record("mutant", in, {y}, {}, [mistake](const BackwardCtx& c) {
        auto [dx, beta] = c.grad(0);
        const Tensor g = times(c.out_grad(), 2);
        const double keep = mistake == ignores_beta ? 0 : mistake == accumulates_over_twice ? 2 * beta : beta;
        for (int64_t i = 0; i < g.size(); ++i) set(dx, i, (keep != 0 ? keep * at(dx, i) : 0) + at(g, i));
      })[0];
      return std::vector{add(twice, add(in[0], in[0]))};
    };
  };
  expect_only_the_first_passes(accumulates_over_twice, {random_f64({3, 33}, 1)}, mutant);
}

TEST(GradcheckRejects, AMissingGradient) {
  EXPECT_FALSE(gradcheck([](const auto& in) { return std::vector{add(in[0], Var(QuantTensor(in[1].value())))}; },
                         {random_f64({2, 3}, 1), random_f64({2, 3}, 2)}));
}
