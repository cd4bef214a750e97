// The engine against LM::logits, to the bit: however tokens are cut into calls, whatever is computed beside them, for
// any number of threads. States are copied, kept and forgotten, and a token allocates nothing.
#include <gtest/gtest.h>

#include "layers/decode/engine.h"
#include "tests/support/compare.h"
#include "tests/support/interpose.h"
#include "tests/support/model_variants.h"

namespace mmfree {
namespace {

constexpr int64_t kBatch = 3, kSteps = 19;

struct TestModel {
  ParamStore params;
  LM lm;
  explicit TestModel(const ModelConfig& c) : params(parameter_specs(c), DType::f32), lm(params, c) {
    randomise(params, 11);
    lm.requantise();
  }
};

class EngineTest : public testing::TestWithParam<Variant> {
 protected:
  TestModel model_{GetParam().config};
  const LM& lm_ = model_.lm;
  Tensor ids_ = random_ids(kBatch * kSteps, GetParam().config.vocab_size, 5);
  Tensor whole_ = lm_.logits(ids_, kBatch);

  std::span<const int32_t> tokens(int64_t row, int64_t begin, int64_t end) const {
    return {ids_.data<int32_t>() + row * kSteps + begin, size_t(end - begin)};
  }
  /// Whether row i of `logits` is what follows token t of sequence `row`.
  bool follows(const Tensor& logits, int64_t i, int64_t row, int64_t t) const {
    const int64_t at = row * kSteps + t;
    return same_bits(logits.slice(i, i + 1), whole_.slice(at, at + 1));
  }
};

TEST_P(EngineTest, AnyCutAndCompanyGivesTheBitsOfTheWholeSequence) {
  for (int threads : {1, 3}) {
    Engine engine(lm_, {.slots = 4, .context = kSteps, .chunk = 5, .threads = threads});
    ASSERT_TRUE(follows(engine.prefill(2, tokens(0, 0, 12)), 0, 0, 11));  // in three chunks
    const EngineInput mixed[] = {
        {0, tokens(1, 0, 7)}, {2, tokens(0, 12, 13)}, {3, tokens(2, 0, 3), false}, {1, tokens(0, 0, 1)}};
    const Tensor some = engine.run(mixed);
    ASSERT_EQ(some.shape(), Shape({3, GetParam().config.vocab_size}));
    EXPECT_TRUE(follows(some, 0, 1, 6) && follows(some, 1, 0, 12) && follows(some, 2, 0, 0));
    ASSERT_TRUE(follows(engine.prefill(3, tokens(2, 3, 13)), 0, 2, 12));
    ASSERT_TRUE(follows(engine.prefill(0, tokens(1, 7, 13)), 0, 1, 12));
    const int64_t slots[] = {3, 2, 0};
    for (int64_t t = 13; t < kSteps; ++t) {
      const int32_t ids[] = {tokens(2, t, t + 1)[0], tokens(0, t, t + 1)[0], tokens(1, t, t + 1)[0]};
      const Tensor logits = engine.step(slots, ids);
      for (int64_t i = 0; i < 3; ++i) ASSERT_TRUE(follows(logits, i, (i + 2) % 3, t)) << i << " at " << t;
    }
    for (int64_t t = 1; t < kSteps; ++t) ASSERT_TRUE(follows(engine.prefill(1, tokens(0, t, t + 1)), 0, 0, t));
    EXPECT_EQ(engine.position(0), kSteps);
  }
}

TEST_P(EngineTest, StatesAreCopiedKeptAndForgotten) {
  Engine engine(lm_, {.slots = 3, .context = kSteps, .chunk = 4, .threads = 1});
  engine.prefill(0, tokens(0, 0, 11));
  engine.prefill(1, tokens(1, 0, 6));
  engine.copy(0, 2);
  const SlotState kept = engine.state(1);
  EXPECT_EQ(kept.position, 6);
  ASSERT_TRUE(follows(engine.prefill(0, tokens(0, 11, 17)), 0, 0, 16));
  ASSERT_TRUE(follows(engine.prefill(2, tokens(0, 11, 15)), 0, 0, 14));
  engine.reset(0);
  EXPECT_EQ(engine.position(0), 0);
  ASSERT_TRUE(follows(engine.prefill(0, tokens(2, 0, 9)), 0, 2, 8));
  engine.prefill(1, tokens(2, 3, 9));
  engine.set_state(1, kept);
  ASSERT_TRUE(follows(engine.prefill(1, tokens(1, 6, 16)), 0, 1, 15));
  Engine other(lm_, {.slots = 1, .context = kSteps, .chunk = 7, .threads = 1});
  other.set_state(0, kept);
  ASSERT_TRUE(follows(other.prefill(0, tokens(1, 6, 7)), 0, 1, 6));
}

/// Counts allocations.
class Counter : public interpose::Watch {
 public:
  interpose::Verdict before(const interpose::Call& call) override {
    count += call.op == interpose::Op::allocate;
    return {};
  }
  void after(const interpose::Call&, int64_t) override {}
  int64_t count = 0;
};

TEST_P(EngineTest, ATokenAllocatesNothing) {
  Engine engine(lm_, {.slots = 2, .context = kSteps, .chunk = 4, .threads = 1});
  const int64_t slots[] = {0, 1};
  engine.prefill(0, tokens(0, 0, 6));
  engine.prefill(1, tokens(1, 0, 6));
  Counter counter;
  for (int64_t t = 6; t < 12; ++t) {
    const int32_t ids[] = {tokens(0, t, t + 1)[0], tokens(1, t, t + 1)[0]};
    interpose::set_watch(&counter);
    engine.step(slots, ids);
    interpose::set_watch(nullptr);
  }
  EXPECT_EQ(counter.count, 0);
}

INSTANTIATE_TEST_SUITE_P(Models, EngineTest, testing::ValuesIn(model_variants({DType::f32})),
                         [](const auto& info) { return info.param.name; });

TEST(EngineErrors, SayWhatIsWrongAndChangeNothing) {
  ModelConfig c = tiny_model_config();
  attend(c);
  const TestModel m(c);
  Engine engine(m.lm, {.slots = 2, .context = 4, .chunk = 3, .threads = 1});
  const int32_t good[] = {1, 2, 3}, bad[] = {1, 61}, more[] = {4, 5};
  const Tensor before = engine.prefill(0, good).clone();
  EXPECT_THROW(engine.prefill(0, more), UsageError) << "five tokens in a context of four";
  EXPECT_THROW(engine.prefill(1, bad), DataError);
  EXPECT_THROW(engine.prefill(1, {}), UsageError);
  EXPECT_THROW(engine.prefill(2, good), UsageError);
  EXPECT_THROW(engine.copy(0, -1), UsageError);
  const EngineInput twice[] = {{1, good}, {1, more}};
  EXPECT_THROW(engine.run(twice), UsageError);
  EXPECT_EQ(engine.position(0), 3);
  EXPECT_EQ(engine.position(1), 0);
  EXPECT_TRUE(same_bits(engine.prefill(1, good), before));
  SlotState state = engine.state(1);
  state.tensors.pop_back();
  EXPECT_THROW(engine.set_state(0, state), DataError);
  state = engine.state(1);
  state.position = 2;
  EXPECT_THROW(engine.set_state(0, state), DataError) << "keys of three tokens";
  EXPECT_THROW(Engine(m.lm, {.slots = 0}), UsageError);
  ParamStore doubles(parameter_specs(c), DType::f64);
  const LM wide(doubles, c);
  EXPECT_THROW(Engine(wide, {}), DTypeError);
}

TEST(EngineLimits, OnlyAttentionWithoutAWindowHasAContext) {
  for (int64_t window : {0, 3}) {
    ModelConfig c = tiny_model_config();
    attend(c);
    c.sliding_window = window;
    const TestModel m(c);
    EXPECT_EQ(Engine(m.lm, {.context = 7}).context(), window ? std::numeric_limits<int64_t>::max() : 7);
  }
}

}  // namespace
}  // namespace mmfree
