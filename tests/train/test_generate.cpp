// Generation: one text, many texts at a time, and texts that go on from a saved state.
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "tests/support/model_variants.h"
#include "tests/support/tiny_run.h"
#include "train/inference/generate.h"
#include "train/inference/state_file.h"

namespace mmfree {
namespace {

/// One thread: models are so small that threads would mostly wait for each other, and on a busy machine for long.
struct Generate : testing::Test {
  const Threads one{1};
};

GenerateOptions options(double temperature, int64_t top_k = 0, double top_p = 1) {
  GenerateOptions o;
  o.sampling = {.temperature = temperature, .top_k = top_k, .top_p = top_p};
  return o;
}

TEST_F(Generate, TheMostLikelyIsTheLowestOfTheLargestAndOnlyOfNumbers) {
  const std::vector<float> logits = {0.5f, -1.0f, 2.0f, 1.25f, 2.0f, -INFINITY, 0.0f};
  EXPECT_EQ(most_likely(logits.data(), int64_t(logits.size())), 2);
  for (const float x : {NAN, INFINITY})
    for (const size_t at : {size_t(0), size_t(3), logits.size() - 1}) {
      std::vector<float> bad = logits;
      bad[at] = x;
      EXPECT_THROW(most_likely(bad.data(), int64_t(bad.size())), DivergedError) << x << " at " << at;
    }
  const std::vector<float> none(7, -INFINITY);
  EXPECT_THROW(most_likely(none.data(), 7), DivergedError);
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

TEST_F(Generate, ColdTextIsTheArgmaxOfTheWholeSequence) {
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

TEST_F(Generate, TheSeedDecidesAndTokensStreamInOrder) {
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
  o.max_tokens = 40, o.sampling.seed = 2;
  EXPECT_NE(generate(*m.lm, {1, 2}, o), text);
}

TEST_F(Generate, StopsWhereItIsTold) {
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

/// All texts, and why they ended.
struct Texts {
  std::vector<std::vector<int32_t>> ids;
  std::vector<TextEnd> ends;
  bool operator==(const Texts&) const = default;
};

Texts many(const LM& lm, const std::vector<GenerateRequest>& requests, const GenerateOptions& o,
           const PromptState* start = nullptr) {
  Texts t{std::vector<std::vector<int32_t>>(requests.size()), std::vector<TextEnd>(requests.size())};
  std::vector<int> ended(requests.size());
  GenerateSink sink;
  sink.on_token = [&](size_t which, int32_t id) { return t.ids[which].push_back(id), id != 17; };
  sink.on_end = [&](size_t which, TextEnd end) { t.ends[which] = end, ++ended[which]; };
  generate(lm, requests, o, start, sink);
  EXPECT_EQ(ended, std::vector<int>(requests.size(), 1));
  return t;
}

/// Models with a recurrence, with attention to all and to some tokens.
std::vector<ModelConfig> kinds_of_models() {
  std::vector<ModelConfig> all(3, tiny_model_config());
  attend(all[1]), attend(all[2]);
  all[2].sliding_window = 5;
  return all;
}

/// Seven prompts, of which some are given several times.
struct Prompts {
  std::vector<std::vector<int32_t>> ids = {{1, 2}, {5}, {9, 8, 7, 6, 5, 4, 3}, {1, 2}, {60, 0, 1}};
  std::vector<GenerateRequest> requests;
  Prompts() {
    for (size_t i = 0; i < ids.size(); ++i)
      for (uint64_t sample = 0; sample < 1 + i % 3; ++sample) requests.push_back({ids[i], sample << 32 | i});
  }
};

TEST_F(Generate, ATextDoesNotDependOnTheBatchOrOnOtherTexts) {
  const Prompts p;
  for (const ModelConfig& config : kinds_of_models()) {
    const Model m = tiny_model(config, false);
    for (const double temperature : {0.0, 1.3}) {
      GenerateOptions o = options(temperature, 0, 0.95);
      o.max_tokens = 20, o.stop = {3}, o.sampling.repetition_penalty = 1.1, o.sampling.min_p = 0.01, o.batch = 100;
      const Texts all = many(*m.lm, p.requests, o);
      for (const int64_t batch : {1, 2, 3}) {
        o.batch = batch;
        EXPECT_EQ(many(*m.lm, p.requests, o), all) << batch;
      }
      for (size_t i = 0; i < p.requests.size(); ++i) EXPECT_EQ(many(*m.lm, {p.requests[i]}, o).ids[0], all.ids[i]) << i;
      std::set<std::vector<int32_t>> different(all.ids.begin(), all.ids.end());
      if (temperature > 0) EXPECT_GT(different.size(), p.requests.size() - 3);
    }
  }
}

TEST_F(Generate, EachTextSaysWhyItEnded) {
  const Model m = tiny_model(tiny_model_config(), false);
  const Prompts p;
  GenerateOptions o = options(1.5);
  o.max_tokens = 30, o.batch = 3, o.stop = {3, 4, 5, 6};
  std::set<TextEnd> seen;
  const Texts t = many(*m.lm, p.requests, o);
  for (size_t i = 0; i < t.ids.size(); ++i) {
    seen.insert(t.ends[i]);
    const auto& ids = t.ids[i];
    EXPECT_EQ(t.ends[i] == TextEnd::told, !ids.empty() && ids.back() == 17);
    if (t.ends[i] == TextEnd::length) EXPECT_EQ(ids.size(), 30u);
    for (int32_t id : o.stop) EXPECT_EQ(std::count(ids.begin(), ids.end(), id), 0);
  }
  EXPECT_GE(seen.size(), 2u);
  o.max_tokens = 0;
  EXPECT_EQ(many(*m.lm, p.requests, o).ends, std::vector<TextEnd>(p.requests.size(), TextEnd::length));
  int steps = 0;
  GenerateSink sink;
  sink.on_end = [&](size_t, TextEnd) { ADD_FAILURE() << "stopped texts have no end"; };
  sink.go_on = [&] { return ++steps < 4; };
  o.max_tokens = 30, o.stop.clear();
  generate(*m.lm, p.requests, o, nullptr, sink);
  EXPECT_EQ(steps, 4);
}

TEST_F(Generate, TextsGoOnFromASavedStateAsFromThePrompt) {
  const std::vector<int32_t> first = {5, 9, 60, 0, 3, 8, 1}, second = {2, 2, 40}, nothing;
  std::vector<int32_t> both = first;
  both.insert(both.end(), second.begin(), second.end());
  const TempDir dir;
  for (const ModelConfig& config : kinds_of_models()) {
    Model m = tiny_model(config, false);
    m.source = "m";
    GenerateOptions o = options(1.2);
    o.max_tokens = 20, o.sampling.repetition_penalty = 1.3;
    write_state(dir / "s", m, prompt_state(*m.lm, first));
    const PromptState state = read_state(dir / "s", m), longer = prompt_state(*m.lm, second, &state);
    EXPECT_EQ(many(*m.lm, {{nothing, 0}}, o, &state), many(*m.lm, {{first, 0}}, o));
    EXPECT_EQ(many(*m.lm, {{second, 4}, {second, 5}}, o, &state), many(*m.lm, {{both, 4}, {both, 5}}, o));
    EXPECT_EQ(many(*m.lm, {{nothing, 1}, {nothing, 2}}, o, &longer), many(*m.lm, {{both, 1}, {both, 2}}, o));
    EXPECT_EQ(longer.slot.position, int64_t(both.size()) - 1);
  }
}

}  // namespace
}  // namespace mmfree
