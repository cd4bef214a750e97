// Per-token scores against the logits of the whole sequence.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/compare.h"
#include "tests/support/tiny_run.h"
#include "train/inference/generate.h"
#include "train/inference/score.h"

namespace mmfree {
namespace {

TEST(Score, IsTheLogSoftmaxOfTheWholeSequence) {
  const Model m = tiny_model(tiny_model_config(), false);
  // More than one block of the head, and most likely tokens in between, so that both flags occur.
  for (int64_t n : {1, 2, 30, 513, 514, 1100}) {
    SCOPED_TRACE(n);
    const Tensor ids = random_ids(n, 61, 2);
    const Tensor first = m.lm->logits(ids, 1);
    std::vector<int32_t> tokens(ids.data<int32_t>(), ids.data<int32_t>() + n);
    if (n == 30) {
      const float* x = first.data<float>() + 28 * 61;
      tokens[29] = int32_t(std::max_element(x, x + 61) - x);
    }
    const Tensor logits = as_f64(m.lm->logits(Tensor::from({n}, tokens.data()), 1));
    const TokenScores s = score(*m.lm, tokens);
    ASSERT_EQ(int64_t(s.logprobs.size()), n - 1);
    ASSERT_EQ(int64_t(s.greedy.size()), n - 1);
    for (int64_t i = 0; i + 1 < n; ++i) {
      const double* x = logits.data<double>() + i * 61;
      double sum = 0;
      for (int v = 0; v < 61; ++v) sum += std::exp(x[v]);
      ASSERT_NEAR(s.logprobs[size_t(i)], x[tokens[size_t(i + 1)]] - std::log(sum),
                  1e-12 * (1 + std::abs(s.logprobs[size_t(i)])))
          << i;
      ASSERT_EQ(s.greedy[size_t(i)], std::max_element(x, x + 61) - x == tokens[size_t(i + 1)]) << i;
    }
    if (n == 30) {
      EXPECT_TRUE(s.greedy[28]);
    }
  }
}

TEST(Score, RefusesTokensOutsideTheVocabulary) {
  const Model m = tiny_model(tiny_model_config(), false);
  EXPECT_THROW(score(*m.lm, {1, 61}), DataError);
  EXPECT_THROW(score(*m.lm, {-1, 1}), DataError);
  EXPECT_THROW(score(*m.lm, {1, -1}), DataError);
}

TEST(Score, LogitsThatAreNotNumbersAreRefused) {
  Model m = tiny_model(tiny_model_config(), false);
  Tensor norm = (*m.params)["lm_head.norm.weight"].value();
  norm.mut<float>()[0] = NAN;
  EXPECT_THROW(score(*m.lm, {1, 2, 3}), DivergedError);
  EXPECT_THROW(generate(*m.lm, {1, 2, 3}, {}), DivergedError);
}

}  // namespace
}  // namespace mmfree
