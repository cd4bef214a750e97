// Sampling: against the textbook in double precision, on rows whose tokens are known, and what it refuses.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/ops/sample.h"
#include "core/rng.h"
#include "core/sampling.h"
#include "tests/support/sampling.h"
#include "tests/support/tensors.h"

namespace mmfree {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// The textbook: sort, cut, and walk along the probabilities.
int32_t textbook(std::vector<double> logits, const SampleSettings& s, double u) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto at = [&](int32_t id) { return logits[size_t(id)]; };
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return at(a) > at(b); });
  if (s.top_k && size_t(s.top_k) < order.size()) order.resize(size_t(s.top_k));
  const auto p = [&](int32_t id) { return std::exp((at(id) - at(order[0])) / s.temperature); };
  const auto sum = [&] {
    return std::accumulate(order.begin(), order.end(), 0.0, [&](double x, int32_t id) { return x + p(id); });
  };
  if (s.top_p < 1) {
    const double total = sum();
    double reached = 0;
    size_t n = 0;
    while (n < order.size() && (n == 0 || reached < s.top_p * total)) reached += p(order[n++]);
    order.resize(n);
  }
  order.erase(std::remove_if(order.begin() + 1, order.end(), [&](int32_t id) { return p(id) < s.min_p; }), order.end());
  double rest = u * sum();
  for (int32_t id : order)
    if ((rest -= p(id)) < 0) return id;
  return order.back();
}

TEST(Sample, AgreesWithTheTextbook) {
  constexpr int64_t kV = 501, kDraws = 400;
  int64_t draws = 0, different = 0;
  for (SampleSettings s : sample_settings()) {
    if (s.temperature == 0 || s.repetition_penalty != 1) continue;
    const Tensor logits = random_tensor({kDraws, kV}, DType::f32, 3, 2);
    s.seed = 9, s.request = 4;
    const Tensor tokens = sampled(logits, s, {});
    for (int64_t i = 0; i < kDraws; ++i) {
      const float* row = logits.data<float>() + i * kV;
      const double u = RandomStream(9, uint64_t(4 + i), "sample").uniform(0);
      different += tokens.data<int32_t>()[i] != textbook({row, row + kV}, s, u);
      ++draws;
    }
  }
  // Masses are rounded to 2^-30 of the largest, so a draw differs if it falls so close to an edge: one of 10^5 at most.
  EXPECT_LE(different, 1) << "of " << draws;
}

TEST(Sample, WithoutATemperatureTheLowestOfTheLargestIsChosen) {
  const float rows[] = {1, 3, 3, 2, -kInfinity, -4, -2, -3};
  const Tensor tokens = sampled(Tensor::from({2, 4}, rows), {}, {});
  EXPECT_EQ(tokens.data<int32_t>()[0], 1);
  EXPECT_EQ(tokens.data<int32_t>()[1], 2);
}

TEST(Sample, CutsKeepTheMostLikely) {
  const float row[] = {0, 5, 0, 5, 4.9f, -kInfinity};
  const auto all = [&](SampleSettings s) {
    std::vector<int> counts(6);
    s.temperature = 2;
    for (uint64_t request = 0; request < 300; ++request) {
      s.request = request;
      ++counts[size_t(sampled(Tensor::from({1, 6}, row), s, {}).data<int32_t>()[0])];
    }
    return counts;
  };
  const auto kept = [&](const SampleSettings& s) {
    std::string ids;
    const std::vector<int> counts = all(s);
    for (size_t i = 0; i < counts.size(); ++i)
      if (counts[i]) ids += char('0' + i);
    return ids;
  };
  EXPECT_EQ(kept({}), "01234");
  EXPECT_EQ(kept({.top_k = 1}), "1");
  EXPECT_EQ(kept({.top_k = 2}), "13");
  EXPECT_EQ(kept({.top_k = 4}), "0134");
  EXPECT_EQ(kept({.top_p = 0}), "1");
  EXPECT_EQ(kept({.top_p = 0.5}), "13");
  EXPECT_EQ(kept({.top_p = 0.9}), "134");
  EXPECT_EQ(kept({.min_p = 1}), "13");
  EXPECT_EQ(kept({.min_p = 0.9}), "134");
  const std::vector<int> counts = all({});
  EXPECT_NEAR(counts[1], counts[3], 60);
}

TEST(Sample, ThePenaltyIsForTokensThatTheSequenceHas) {
  const float row[] = {2, 1.5f, -1, -1.2f};
  EXPECT_EQ(sampled(Tensor::from({1, 4}, row), {.repetition_penalty = 2}, {0}).data<int32_t>()[0], 1);
  EXPECT_EQ(sampled(Tensor::from({1, 4}, row), {.repetition_penalty = 2}, {1}).data<int32_t>()[0], 0);
  const float low[] = {-1, -1.5f};
  EXPECT_EQ(sampled(Tensor::from({1, 2}, low), {.repetition_penalty = 2}, {0}).data<int32_t>()[0], 1);
}

TEST(Sample, EveryDrawTakesTheNextRandomNumber) {
  const Tensor logits = random_tensor({1, 99}, DType::f32, 5, 0.1);
  const SampleSettings s{.temperature = 1, .seed = 3};
  Tensor rows = sample_rows({sample_row(s)}), none, token({1}, DType::i32);
  std::vector<int32_t> tokens;
  for (uint64_t i = 0; i < 20; ++i) {
    sample(logits, rows, none, token);
    tokens.push_back(token.data<int32_t>()[0]);
    Tensor again = sample_rows({sample_row(s, i)});
    sample(logits, again, none, token);
    EXPECT_EQ(token.data<int32_t>()[0], tokens.back());
  }
  EXPECT_GT(std::set<int32_t>(tokens.begin(), tokens.end()).size(), 10u);
}

TEST(Sample, RowsThatAreNotFiniteGiveNoToken) {
  for (double temperature : {0.0, 1.0}) {
    float rows[] = {1, NAN, 2, 1, kInfinity, 2, -kInfinity, -kInfinity, -kInfinity, 0, 1, 2};
    const Tensor tokens = sampled(Tensor::from({4, 3}, rows), {.temperature = temperature, .top_k = 1}, {});
    for (int64_t i = 0; i < 3; ++i) EXPECT_EQ(tokens.data<int32_t>()[i], -1);
    EXPECT_EQ(tokens.data<int32_t>()[3], 2);
  }
}

TEST(Sample, SettingsOutOfRangeAreRefused) {
  for (const SampleSettings& s : std::initializer_list<SampleSettings>{{.temperature = -1},
                                                                       {.temperature = NAN},
                                                                       {.top_k = -1},
                                                                       {.top_p = 1.1},
                                                                       {.top_p = NAN},
                                                                       {.min_p = -0.1},
                                                                       {.repetition_penalty = 0}})
    EXPECT_THROW(sample_row(s), UsageError);
  Tensor logits = random_tensor({2, 5}, DType::f32, 1), none, tokens({2}, DType::i32);
  Tensor rows = sample_rows({sample_row({})});
  EXPECT_THROW(sample(logits, rows, none, tokens), ShapeError);
}

TEST(Sample, MassesFallWithTheDistance) {
  uint32_t before = token_mass(0);
  EXPECT_GT(before, (1u << 30) - 300);
  for (uint64_t d = 0; d < (uint64_t(1) << 32); d += 999983) {
    const uint32_t mass = token_mass(uint32_t(d));
    EXPECT_NEAR(mass, std::exp2(30 - double(d) / double(1 << kDistanceBits)), 256);
    EXPECT_LE(mass, before);
    before = mass;
  }
  EXPECT_EQ(token_mass(kFarthest), 0u);
}

}  // namespace
}  // namespace mmfree
