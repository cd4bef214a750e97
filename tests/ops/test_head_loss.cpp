#include <gtest/gtest.h>

#include "core/ops/head_loss.h"
#include "tests/support/composed.h"

using namespace mmfree;

namespace {

constexpr double kScale = 0.125;
const int64_t kHeadRows = head_rows(33, Device::cpu);

struct Problem {
  QuantTensor q;
  WeightMatrix w;
  Tensor q_plain, w_plain, targets;
};

/// Every seventh row is not scored.
Problem make_problem(int64_t n, int64_t v, int64_t k, DType t, bool ternary) {
  Problem p;
  p.targets = random_ids(n, v, 1);
  for (int64_t i = 6; i < n; i += 7) p.targets.mut<int32_t>()[i] = kIgnoreTarget;
  const Tensor latent = random_tensor({v, k}, t, 2);
  p.q_plain = random_tensor({n, k}, t, 3);
  if (ternary) {
    Tensor codes({n, k}, DType::i8), dense({v, k}, t);
    for (int64_t i = 0; i < codes.size(); ++i) codes.mut<int8_t>()[i] = int8_t(std::lround(30 * at(p.q_plain, i)));
    p.q = QuantTensor(codes, full({n}, t, 1.0 / 32), t);
    p.w.ternary = make_ternary(v, k, t);
    ternary_quantise(latent, p.w.ternary);
    ternary_dequantise(p.w.ternary, dense);
    p.q_plain = composed::dequantised(codes, p.q.scale), p.w_plain = dense;
  } else {
    p.q = p.q_plain, p.w.plain = p.w_plain = latent;
  }
  return p;
}

struct Outputs {
  Tensor nll;
  HeadLossGrads grads;
};

Outputs run(const Problem& p, bool dq = true, bool dw = true) {
  const int64_t n = p.targets.size(), k = p.w.cols();
  const DType t = p.q.compute;
  Outputs o{Tensor({n}, t),
            {dq ? full({n, k}, t, kNaN) : Tensor(), dw ? full({p.w.rows(), k}, t, kNaN) : Tensor(), 0, {}}};
  o.grads.scale = LossScale(kScale).on(Device::cpu);
  head_loss(p.q, p.w, p.targets, o.nll, &o.grads);
  return o;
}

}  // namespace

TEST(HeadLoss, MatchesItsComposedTwin) {
  for (DType t : {DType::f64, DType::f32})
    for (bool ternary : {false, true})
      for (int64_t v : {1, 3, 33, 1000})
        for (int64_t n : {1, 13, 2 * int(kHeadRows) + 6}) {
          if (n > 100 && v > 100) continue;  // only for the time it takes
          SCOPED_TRACE(concat(name_of(t), ternary ? " ternary " : " plain ", n, " rows, vocabulary ", v));
          const Problem p = make_problem(n, v, 31, t, ternary);
          const Outputs o = run(p);
          const Tensor logits = composed::product(p.q_plain, false, p.w_plain, true);
          const composed::CrossEntropy expected = composed::cross_entropy(logits, p.targets, kScale);
          // Logits are good to about 10 eps of the largest, some 20 in size; softmax turns that into a relative error.
          const double bound = 400 * epsilon_of(t);
          for (int64_t i = 0; i < n; ++i) ASSERT_NEAR(at(expected.nll, i), at(o.nll, i), bound);
          if (v == 1) {  // softmax of one logit is 1: no gradient
            EXPECT_EQ(0, sum_of_squares(o.grads.dq) + sum_of_squares(o.grads.dw));
            continue;
          }
          EXPECT_LE(relative_error(o.grads.dq, composed::product(expected.dlogits, false, p.w_plain, false)), bound);
          EXPECT_LE(relative_error(o.grads.dw, composed::product(expected.dlogits, true, p.q_plain, false)), bound);
        }
}

TEST(HeadLoss, GradientsAreOptionalAndChangeNothing) {
  const Problem p = make_problem(600, 33, 31, DType::f32, true);
  const Outputs both = run(p), only_q = run(p, true, false), only_w = run(p, false, true), none = run(p, false, false);
  EXPECT_TRUE(same_bits(both.grads.dq, only_q.grads.dq));
  EXPECT_TRUE(same_bits(both.grads.dw, only_w.grads.dw));
  for (const Outputs& o : {only_q, only_w, none}) EXPECT_TRUE(same_bits(both.nll, o.nll));
  Tensor nll({600}, DType::f32);
  head_loss(p.q, p.w, p.targets, nll, nullptr);
  EXPECT_TRUE(same_bits(both.nll, nll));
}

TEST(HeadLoss, UnscoredRowsCountForNothing) {
  Problem p = make_problem(13, 33, 31, DType::f64, false);
  const Outputs o = run(p);
  EXPECT_EQ(0, at(o.nll, 6));
  EXPECT_EQ(0, sum_of_squares(o.grads.dq.slice(6, 7)));
  EXPECT_GT(sum_of_squares(o.grads.dq.slice(5, 6)), 0);
  for (int64_t i = 0; i < 13; ++i) p.targets.mut<int32_t>()[i] = kIgnoreTarget;
  EXPECT_EQ(0, sum_of_squares(run(p).grads.dw));
}

TEST(HeadLoss, SurvivesLargeLogits) {
  for (DType t : {DType::f64, DType::f32}) {
    Problem p = make_problem(3, 2, 1, t, false);
    for (int64_t i = 0; i < 3; ++i) p.targets.mut<int32_t>()[i] = 1;
    set(p.w.plain, 0, 1), set(p.w.plain, 1, -1);
    p.q = full({3, 1}, t, 2000);
    const Outputs o = run(p);
    EXPECT_NEAR(4000, at(o.nll, 0), 1e-3);
    EXPECT_EQ(0, count_non_finite(o.grads.dq) + count_non_finite(o.grads.dw));
  }
}

TEST(HeadLoss, WeightGradientHonoursBeta) {
  for (DType t : {DType::f64, DType::f32})
    for (bool ternary : {false, true}) {
      const Problem p = make_problem(kHeadRows + 5, 33, 31, t, ternary);
      Tensor nll({kHeadRows + 5}, t);
      expect_beta_semantics({33, 31}, t, [&](Tensor& dw, double beta) {
        HeadLossGrads grads{{}, dw, beta, LossScale(kScale).on(Device::cpu)};
        head_loss(p.q, p.w, p.targets, nll, &grads);
      });
    }
}

TEST(HeadLoss, GivesTheSameBitsForAnyNumberOfThreads) {
  for (bool ternary : {false, true}) {
    const Problem p = make_problem(600, 301, 31, DType::f32, ternary);
    expect_same_bits_for_any_threads([&] {
      const Outputs o = run(p);
      return std::vector<Tensor>{o.nll, o.grads.dq, o.grads.dw};
    });
  }
}

TEST(HeadLoss, NonFiniteActivationsReachTheLoss) {
  for (DType t : {DType::f64, DType::f32})
    for (bool ternary : {false, true})
      for (double bad : {kNaN, kInfinity}) {
        Problem p = make_problem(4, 33, 31, t, ternary);
        set(ternary ? p.q.scale : p.q.values, ternary ? 2 : 2 * 31 + 30, bad);
        const Outputs o = run(p);
        EXPECT_FALSE(std::isfinite(at(o.nll, 2)));
        EXPECT_EQ(1, count_non_finite(o.nll));
        EXPECT_EQ(31, count_non_finite(o.grads.dq.slice(2, 3)));
        EXPECT_NE(0, count_non_finite(o.grads.dw));
        EXPECT_FALSE(std::isfinite(at(run(p, false, false).nll, 2)));
      }
}

TEST(HeadLoss, ANaNInAnyLogitReachesTheLoss) {
  for (int64_t row : {0, 15, 32}) {
    Problem p = make_problem(2, 33, 31, DType::f32, false);
    set(p.w.plain, row * 31, kNaN);
    EXPECT_EQ(2, count_non_finite(run(p).nll)) << row;
    EXPECT_EQ(2, count_non_finite(run(p, false, false).nll)) << row;
  }
}

TEST(HeadLoss, NamesATargetOutsideTheVocabulary) {
  for (int32_t bad : {33, -1, -99, 1 << 30}) {
    Problem p = make_problem(kHeadRows + 3, 33, 5, DType::f32, false);
    p.targets.mut<int32_t>()[kHeadRows + 1] = bad;
    const std::string text = "target " + std::to_string(bad);
    expect_error<DataError>({"head_loss", text.c_str(), "0..32"}, [&] { run(p); });
  }
}

TEST(HeadLoss, HoldsABoundedShareOfTheLogits) {
  for (int64_t vocab : {1, 61, 32000, 1 << 24}) EXPECT_EQ(512, head_rows(vocab, Device::cpu));
  EXPECT_EQ(4096, head_rows(32768, Device::cuda));  // 256 MiB of two bytes each
  EXPECT_EQ(3584, head_rows(32769, Device::cuda));  // whole multiples of 512
  EXPECT_EQ(512, head_rows(1 << 24, Device::cuda));
  for (int64_t vocab : {1000, 32000, 50257}) {
    const int64_t rows = head_rows(vocab, Device::cuda);
    EXPECT_EQ(0, rows % 512);
    EXPECT_LE(2 * rows * vocab, int64_t(256) << 20);
    EXPECT_GT(2 * (rows + 512) * vocab, int64_t(256) << 20);
  }
}

TEST(HeadLoss, RejectsWrongArguments) {
  Problem p = make_problem(4, 33, 5, DType::f32, false);
  Tensor nll({4}, DType::f32), short_nll({3}, DType::f32), nll64({4}, DType::f64);
  const auto call = [&](const Tensor& targets, Tensor& out) { head_loss(p.q, p.w, targets, out, nullptr); };
  expect_error<ShapeError>({"head_loss", "targets"}, [&] { call(p.targets.slice(0, 3), nll); });
  expect_error<DTypeError>({"head_loss", "targets", "i32"}, [&] { call(Tensor({4}, DType::i64), nll); });
  expect_error<ShapeError>({"head_loss", "nll"}, [&] { call(p.targets, short_nll); });
  expect_error<DTypeError>({"head_loss", "nll"}, [&] { call(p.targets, nll64); });
  HeadLossGrads grads{Tensor({4, 6}, DType::f32), {}, 0, full({1}, DType::f64, 1)};
  EXPECT_THROW(head_loss(p.q, p.w, p.targets, nll, &grads), ShapeError);
  grads = {Tensor({4, 5}, DType::f32), {}, 0, {}};
  expect_error<ShapeError>({"head_loss", "scale"}, [&] { head_loss(p.q, p.w, p.targets, nll, &grads); });
  expect_error<DTypeError>({"loss", "scale", "f64"}, [&] { LossScale(full({1}, DType::f32, 1)).on(Device::cpu); });
}
