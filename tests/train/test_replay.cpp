// Replaying steps of a run: they are the same, unless something changed, and then the first that differs is named.
#include <gtest/gtest.h>

#include "tests/support/training.h"
#include "train/run/digest.h"
#include "train/run/replay.h"

namespace mmfree {
namespace {

RunConfig leafy_run(const TempDir& dir) {
  RunConfig c = tiny_run(dir / "run");
  c.train.leaves = 2;
  c.train.save_every = 5;
  c.train.eval_every = 5;
  c.train.keep_last = 9;
  return c;
}

TEST(Replay, MakesTheSameStepsAgain) {
  const TempDir dir;
  train(leafy_run(dir));
  const auto compared = [&](int64_t step) {
    const ReplayResult r = replay(dir / "run", step, {}, lone_group());
    return std::array{r.from, r.to, r.steps, r.checkpoints};
  };
  EXPECT_EQ((std::array<int64_t, 4>{5, 9, 4, 0}), compared(9));
  EXPECT_EQ((std::array<int64_t, 4>{5, 10, 5, 1}), compared(10));
  EXPECT_EQ((std::array<int64_t, 4>{10, 12, 2, 1}), compared(12));
  EXPECT_EQ((std::array<int64_t, 4>{0, 5, 5, 1}), compared(5)) << "from the start";
}

TEST(Replay, NamesTheFirstStepThatDiffers) {
  const TempDir dir;
  train(leafy_run(dir));
  const std::string path = dir / "run/metrics.jsonl", before = slurp(path);
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = before;
    text.replace(text.find(from), from.size(), to);
    spit(path, text);
  };
  const auto differs = [&](int64_t step) {
    return error_of<DataError>([&] { replay(dir / "run", step, {}, lone_group()); });
  };
  const std::map<int64_t, StepDigests> told = read_digests(path);
  with(told.at(8).step, "0123456789abcdef");
  EXPECT_TRUE(contains(differs(9), "step 8: differs from the run: loss"));
  with(told.at(10).weights, "0123456789abcdef");
  EXPECT_TRUE(contains(differs(10), "step 10: the weights differ"));
  spit(path, before);
  EXPECT_TRUE(
      contains(error_of<DataError>([&] { replay(dir / "run", 9, {"optim.eps=1e-3"}, lone_group()); }), "step 7"))
      << "the first step is made from the same weights";
}

TEST(Replay, SaysWhatIsMissing) {
  const TempDir dir;
  RunConfig c = leafy_run(dir);
  c.train.log_every = 6;
  c.train.save_every = 0;
  train(c);
  EXPECT_TRUE(
      contains(error_of<ConfigError>([&] { replay(dir / "run", 13, {}, lone_group()); }), "has 12 steps, not 13"));
  EXPECT_THROW(replay(dir / "nothing", 3, {}, lone_group()), MissingError);
}

TEST(Digest, OfWeightsIsTheSumOverPieces) {
  Tensor values({5 * kParamBlock}, DType::f32);
  for (int64_t i = 0; i < values.size(); ++i) values.mut<float>()[i] = float(i) - 7000.5f;
  const std::string all = weights_digest(values, {});
  EXPECT_EQ(16u, all.size());
  Tensor other = values.clone();
  other.mut<float>()[2 * kParamBlock] *= -1;
  EXPECT_NE(all, weights_digest(other, {})) << "a sign counts";
  Tensor swapped = values.clone();
  swapped.slice(0, kParamBlock).copy_from(values.slice(kParamBlock, 2 * kParamBlock));
  swapped.slice(kParamBlock, 2 * kParamBlock).copy_from(values.slice(0, kParamBlock));
  EXPECT_NE(all, weights_digest(swapped, {})) << "and so does the place";
  EXPECT_NE(step_digest(1, 2), step_digest(2, 1));
}

}  // namespace
}  // namespace mmfree
