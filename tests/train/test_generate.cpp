// Sampling against the softmax, and generation with its constant state.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/tiny_run.h"
#include "train/inference/generate.h"

namespace mmfree {
namespace {

const std::vector<float> kLogits = {0.5f, -1.0f, 2.0f, 1.25f, 2.0f, -INFINITY, 0.0f};

GenerateOptions options(double temperature, int64_t top_k = 0, double top_p = 1) {
  GenerateOptions o;
  o.temperature = temperature, o.top_k = top_k, o.top_p = top_p;
  return o;
}

/// How often each token comes up over a fine grid of u.
std::vector<double> frequencies(const GenerateOptions& o) {
  constexpr int kGrid = 200000;
  std::vector<double> f(kLogits.size());
  for (int i = 0; i < kGrid; ++i)
    f[size_t(sample(kLogits.data(), int64_t(kLogits.size()), o, (i + 0.5) / kGrid))] += 1.0 / kGrid;
  return f;
}

/// Softmax over the tokens in `kept`.
std::vector<double> softmax(double temperature, const std::vector<size_t>& kept) {
  std::vector<double> p(kLogits.size());
  double sum = 0;
  for (size_t i : kept) sum += p[i] = std::exp(double(kLogits[i]) / temperature);
  for (double& x : p) x /= sum;
  return p;
}

void expect_frequencies(const GenerateOptions& o, const std::vector<double>& expected) {
  const std::vector<double> got = frequencies(o);
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], 2e-5) << "token " << i;
}

TEST(Sample, FollowsTheSoftmax) {
  const std::vector<size_t> all = {0, 1, 2, 3, 4, 6};
  for (double t : {0.3, 1.0, 4.0}) expect_frequencies(options(t), softmax(t, all));
  expect_frequencies(options(1, 100), softmax(1, all));
}

TEST(Sample, TopKAndTopPKeepTheMostLikely) {
  expect_frequencies(options(1, 2), softmax(1, {2, 4}));
  expect_frequencies(options(2, 3), softmax(2, {2, 4, 3}));
  // Probabilities 0.343 (2), 0.343 (4), 0.162 (3), 0.077 (0), 0.046 (6), 0.017 (1), 0 (5).
  expect_frequencies(options(1, 0, 0.34), softmax(1, {2}));
  expect_frequencies(options(1, 0, 0.35), softmax(1, {2, 4}));
  expect_frequencies(options(1, 0, 0.70), softmax(1, {2, 4, 3}));
  expect_frequencies(options(1, 0, 0.90), softmax(1, {2, 4, 3, 0}));
  // After top-k the rest counts as everything: 0.405, 0.405, 0.19.
  expect_frequencies(options(1, 3, 0.80), softmax(1, {2, 4}));
}

TEST(Sample, ColdNarrowOrTinyMeansTheMostLikelyAndTiesGoToTheLowerId) {
  for (const GenerateOptions& o :
       {options(0), options(1, 1), options(1, 0, 1e-9), options(1, 0, 0), options(1e-4, 0, 0.5), options(0, 5, 0.5)})
    for (double u : {0.0, 0.3, 0.999999999}) EXPECT_EQ(sample(kLogits.data(), int64_t(kLogits.size()), o, u), 2);
}

TEST(Sample, NeverPicksTheImpossible) {
  EXPECT_EQ(frequencies(options(50))[5], 0);
  EXPECT_EQ(sample(kLogits.data(), int64_t(kLogits.size()), options(1), std::nextafter(1.0, 0.0)), 1);
}

TEST(Sample, LogitsThatAreNotNumbersAreRefused) {
  std::vector<float> bad = kLogits;
  for (const float x : {NAN, INFINITY})
    for (const size_t at : {size_t(0), size_t(3), kLogits.size() - 1})
      for (const GenerateOptions& o : {options(0), options(1), options(1, 2), options(1, 0, 0.5)}) {
        bad = kLogits;
        bad[at] = x;
        EXPECT_THROW(sample(bad.data(), int64_t(bad.size()), o, 0.3), DivergedError) << x << " at " << at;
      }
  bad.assign(bad.size(), -INFINITY);
  EXPECT_THROW(sample(bad.data(), int64_t(bad.size()), options(1), 0.3), DivergedError);
}

std::vector<int32_t> greedy(const LM& lm, std::vector<int32_t> tokens, int64_t count) {
  const size_t prompt = tokens.size();
  for (int64_t i = 0; i < count; ++i) {
    const Tensor logits = lm.logits(Tensor::from({int64_t(tokens.size())}, tokens.data()), 1);
    const float* x = logits.data<float>() + (logits.dim(0) - 1) * logits.dim(1);
    tokens.push_back(int32_t(std::max_element(x, x + logits.dim(1)) - x));
  }
  return {tokens.begin() + int64_t(prompt), tokens.end()};
}

TEST(Generate, ColdTextIsTheArgmaxOfTheWholeSequence) {
  ModelConfig c = tiny_model_config();
  mix_precisions(c);
  const Model m = tiny_model(c, false);
  for (const std::vector<int32_t>& prompt : {std::vector<int32_t>{1}, {5, 9, 60, 0, 3}}) {
    GenerateOptions o = options(0);
    o.max_tokens = 25;
    EXPECT_EQ(generate(*m.lm, prompt, o), greedy(*m.lm, prompt, 25));
    o = options(1, 1), o.max_tokens = 25;
    EXPECT_EQ(generate(*m.lm, prompt, o), greedy(*m.lm, prompt, 25));
  }
}

TEST(Generate, TheSeedDecidesAndTokensStreamInOrder) {
  const Model m = tiny_model(tiny_model_config(), false);
  GenerateOptions o = options(1.5);
  o.max_tokens = 40;
  std::vector<int32_t> streamed;
  const auto text = generate(*m.lm, {1, 2}, o, [&](int32_t id) { return streamed.push_back(id), true; });
  EXPECT_EQ(text.size(), 40u);
  EXPECT_EQ(streamed, text);
  EXPECT_EQ(generate(*m.lm, {1, 2}, o), text);
  o.max_tokens = 7;
  EXPECT_EQ(generate(*m.lm, {1, 2}, o), std::vector<int32_t>(text.begin(), text.begin() + 7));
  o.max_tokens = 40, o.seed = 2;
  EXPECT_NE(generate(*m.lm, {1, 2}, o), text);
}

TEST(Generate, StopsWhereItIsTold) {
  const Model m = tiny_model(tiny_model_config(), false);
  GenerateOptions o = options(1.5);
  o.max_tokens = 40;
  const auto text = generate(*m.lm, {1, 2}, o);
  o.stop = {text[10]};
  const auto first = std::find(text.begin(), text.end(), text[10]);
  EXPECT_EQ(generate(*m.lm, {1, 2}, o), std::vector<int32_t>(text.begin(), first));
  o.stop.clear();
  EXPECT_EQ(generate(*m.lm, {1, 2}, o, [n = 0](int32_t) mutable { return ++n < 5; }),
            std::vector<int32_t>(text.begin(), text.begin() + 5));
  o.max_tokens = 0;
  EXPECT_TRUE(generate(*m.lm, {1, 2}, o).empty());
  EXPECT_THROW(generate(*m.lm, {}, o), UsageError);
}

}  // namespace
}  // namespace mmfree
