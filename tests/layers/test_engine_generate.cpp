// Engine::generate on the CPU: its tokens are those of steps and samples made one by one, and a loop that ends early
// leaves an engine that can be used.
#include <gtest/gtest.h>

#include "layers/decode/engine.h"
#include "tests/support/sampling.h"
#include "tests/support/tiny_model.h"

namespace mmfree {
namespace {

struct Models {
  ModelConfig config = tiny_model_config();
  ParamStore params{parameter_specs(config), DType::f32};
  LM lm{params, config};
  Tensor ids = random_ids(40, config.vocab_size, 5);
  Models() {
    randomise(params, 11);
    lm.requantise();
  }
  std::span<const int32_t> prompt(int64_t i) const { return {ids.data<int32_t>() + 9 * i, size_t(4 + i)}; }
};

constexpr int64_t kSequences = 3, kCount = 15;

SampleSettings settings_of(int64_t i) {
  return {.temperature = 0.7 * double(i), .top_p = 0.9, .repetition_penalty = 1.2, .seed = 3, .request = uint64_t(i)};
}

/// Tokens of one sequence, step by step.
std::vector<int32_t> alone(const Models& m, int64_t i) {
  Engine engine(m.lm, {.slots = 1});
  std::vector<int32_t> text, seen(m.prompt(i).begin(), m.prompt(i).end());
  Tensor logits = engine.prefill(0, m.prompt(i));
  for (uint64_t index = 0; index < uint64_t(kCount); ++index) {
    Tensor rows = sample_rows({sample_row(settings_of(i), index)}), token({1}, DType::i32);
    Tensor bits = Tensor::zeros({1, (m.config.vocab_size + 31) / 32}, DType::i32);
    for (int32_t id : seen) bits.mut<int32_t>()[id / 32] |= int32_t(uint32_t(1) << id % 32);
    sample(logits, rows, bits, token);
    text.push_back(token.data<int32_t>()[0]);
    seen.push_back(text.back());
    logits = engine.prefill(0, {&text.back(), 1});
  }
  return text;
}

TEST(EngineGenerate, TokensAreThoseOfStepsMadeOneByOne) {
  const Models m;
  Engine engine(m.lm, {.slots = 4});
  for (int round = 0; round < 2; ++round) {  // the slots are empty again
    std::vector<EngineInput> inputs;
    std::vector<SampleSettings> settings;
    for (int64_t i = 0; i < kSequences; ++i) inputs.push_back({3 - i, m.prompt(i)}), settings.push_back(settings_of(i));
    std::vector<std::vector<int32_t>> texts(kSequences);
    engine.generate(inputs, settings, kCount, [&](std::span<const int32_t> tokens) {
      for (size_t i = 0; i < tokens.size(); ++i) texts[i].push_back(tokens[i]);
      return true;
    });
    for (int64_t i = 0; i < kSequences; ++i) EXPECT_EQ(texts[size_t(i)], alone(m, i)) << i;
  }
}

TEST(EngineGenerate, ALoopThatEndsEarlyLeavesEmptySlots) {
  const Models m;
  Engine engine(m.lm, {.slots = 1});
  const EngineInput input{0, m.prompt(0)};
  const SampleSettings settings = settings_of(0);
  int steps = 0;
  engine.generate({&input, 1}, {&settings, 1}, kCount, [&](auto) { return ++steps < 4; });
  EXPECT_EQ(steps, 4);
  EXPECT_EQ(engine.position(0), 0);
  const auto fails = [](std::span<const int32_t>) -> bool { throw IoError("disk full"); };
  EXPECT_THROW(engine.generate({&input, 1}, {&settings, 1}, kCount, fails), IoError);
  EXPECT_EQ(engine.position(0), 0);
}

TEST(EngineGenerate, RefusesWhatDoesNotFit) {
  const Models m;
  Engine engine(m.lm, {.slots = 1});
  const EngineInput input{0, m.prompt(0)}, silent{0, m.prompt(0), false}, outside{1, m.prompt(0)};
  const SampleSettings good, bad{.top_p = 2};
  const auto go_on = [](auto) { return true; };
  EXPECT_THROW(engine.generate({&input, 1}, {}, 3, go_on), UsageError);
  EXPECT_THROW(engine.generate({&input, 1}, {&bad, 1}, 3, go_on), UsageError);
  EXPECT_THROW(engine.generate({&silent, 1}, {&good, 1}, 3, go_on), UsageError);
  EXPECT_THROW(engine.generate({&outside, 1}, {&good, 1}, 3, go_on), UsageError);
  EXPECT_EQ(engine.position(0), 0);
}

}  // namespace
}  // namespace mmfree
