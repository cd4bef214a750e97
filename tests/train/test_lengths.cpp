// The length of a run in steps, tokens or epochs: the same steps, the same bits.
#include <gtest/gtest.h>

#include "tests/support/program.h"
#include "tests/support/training.h"
#include "train/run/lengths.h"
#include "train/run/run_batches.h"

namespace mmfree {
namespace {

constexpr int64_t kInStep = 4 * 17;

RunConfig in_tokens(RunConfig c, int64_t tokens) {
  c.train.steps = 0, c.train.tokens = tokens;
  return c;
}

RunConfig in_epochs(RunConfig c, double epochs) {
  c.train.steps = 0, c.train.epochs = epochs;
  return c;
}

int64_t steps_of(RunConfig c) {
  resolve_lengths(c);
  return c.train.steps;
}

TEST(Lengths, AreRoundedUpToWholeSteps) {
  RunConfig c = tiny_run("run");
  c.optim.warmup_steps = 0;
  EXPECT_EQ(12, steps_of(c));
  for (const auto& [tokens, steps] : {std::pair{1, 1}, {67, 1}, {68, 1}, {69, 2}, {815, 12}, {816, 12}, {817, 13}})
    EXPECT_EQ(steps, steps_of(in_tokens(c, tokens))) << tokens;
  const Corpus corpus(c.data);
  const auto windows = double(Batches(corpus, batch_options(c)).windows());
  for (const auto& [samples, steps] : {std::pair{1, 1}, {4, 1}, {5, 2}, {47, 12}, {48, 12}, {49, 13}})
    EXPECT_EQ(steps, steps_of(in_epochs(c, samples / windows))) << samples;
  EXPECT_EQ(int64_t(std::ceil(2 * windows / 4)), steps_of(in_epochs(c, 2)));
}

TEST(Lengths, OfSeveralSourcesAreThoseOfTheOneThatIsSeenMost) {
  const TempDir large, small;
  RunConfig c = tiny_run("run");
  c.optim.warmup_steps = 0;
  c.data.train.clear();
  c.data.sources = {{"a", {random_shard(large, 50, 17)}, 3}, {"b", {random_shard(small, 9, 17)}, 1}};
  const Corpus corpus(c.data);
  const Batches batches(corpus, batch_options(c));
  for (const double epochs : {0.1, 1.0, 3.7}) {
    const int64_t steps = steps_of(in_epochs(c, epochs));
    EXPECT_GE(batches.epochs(4 * steps), epochs);
    EXPECT_LT(batches.epochs(4 * (steps - 1)), epochs);
  }
}

TEST(Lengths, OfAWarmUpInTokens) {
  RunConfig c = tiny_run("run");
  c.optim.warmup_steps = -1, c.optim.warmup_tokens = 3 * kInStep + 1;
  resolve_lengths(c);
  EXPECT_EQ(4, c.optim.warmup_steps);
  EXPECT_EQ("optim.warmup_tokens", c.origins.at("optim.warmup_steps"));
  c.train.steps = 3;
  EXPECT_TRUE(contains(error_of<ConfigError>([&] { resolve_lengths(c); }),
                       "the warm-up of 4 steps is longer than the run, which has 3 (train.steps)"));
  EXPECT_TRUE(contains(error_of<ConfigError>([&] { steps_of(in_tokens(c, int64_t{1} << 60)); }),
                       "train.tokens asks for more than 1099511627776 steps"));
}

TEST(Lengths, InOtherUnitsAreTheSameRun) {
  const TempDir dir;
  RunConfig steps = tiny_run(dir / "steps");
  train(steps);
  RunConfig tokens = in_tokens(tiny_run(dir / "tokens"), 12 * kInStep - 5);
  tokens.optim.warmup_steps = -1, tokens.optim.warmup_tokens = 3 * kInStep;
  const Corpus corpus(steps.data);
  RunConfig epochs =
      in_epochs(tiny_run(dir / "epochs"), 48.0 / double(Batches(corpus, batch_options(steps)).windows()));
  for (RunConfig* other : {&tokens, &epochs}) {
    RunConfig part = *other;
    part.train.max_time = 1e-9;
    EXPECT_EQ(1, train(part).step);
    other->train.resume = {ResumeFrom::newest};
    text_of([&] { EXPECT_EQ(12, train(*other).step); });
    const std::string run = other->train.run_dir;
    EXPECT_EQ(learned(checkpoint_path(run, 12)), learned(checkpoint_path(dir / "steps", 12)));
    EXPECT_EQ(timeless_metrics(run), timeless_metrics(dir / "steps"));
    const RunConfig resolved = load_config(run + "/config.resolved.yaml");
    EXPECT_EQ(12, resolved.train.steps);
    EXPECT_EQ(3, resolved.optim.warmup_steps);
    EXPECT_EQ(0, resolved.train.tokens + resolved.optim.warmup_tokens);
    EXPECT_EQ(0, resolved.train.epochs);
  }
}

TEST(Lengths, CountTheTokensThatWereTrainedOnWithAnotherBatch) {
  const TempDir dir;
  RunConfig c = in_tokens(tiny_run(dir / "run"), 6 * kInStep);
  train(c);
  c = in_tokens(c, 12 * kInStep);
  c.train.resume = {ResumeFrom::newest};
  c.train.batch_size = 8;
  const std::string said = text_of([&] { EXPECT_EQ(6 + 3, train(c, true).step); });
  EXPECT_TRUE(contains(said, "train.batch_size changed: step 7 goes on with sample 24")) << said;
  EXPECT_TRUE(contains(said, "no data are repeated or left out")) << said;
  EXPECT_EQ(12 * kInStep, Checkpoint(checkpoint_path(dir / "run", 9)).state().tokens);
  c.train.tokens = 6 * kInStep;
  EXPECT_TRUE(contains(error_of<ConfigError>([&] { train(c, true); }), "has made 9 steps already"));
}

TEST(Lengths, AreShownByTheDryRun) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.optim.warmup_steps = 0;
  spit(dir / "run.yaml", to_yaml(c));
  for (const char* length : {"train.tokens=800", "train.epochs=0.01"}) {
    Program program({"train", dir / "run.yaml", length, "--dry-run"});
    EXPECT_EQ(0, program.wait()) << program.err();
    RunConfig c = load_config(dir / "run.yaml");
    c.train.steps = 0;
    (contains(length, "tokens") ? void(c.train.tokens = 800) : void(c.train.epochs = 0.01));
    const std::string steps = concat(steps_of(c));
    EXPECT_TRUE(contains(program.out(), " " + steps + " steps of 4 x 17")) << program.out();
    EXPECT_TRUE(contains(program.out(), "  steps: " + steps + " ")) << program.out();
    EXPECT_TRUE(contains(program.out(), std::string("# ") + std::string(length).substr(0, 12) + "\n"));
  }
}

/// What a file with `train` comes to: steps, tokens, epochs.
std::tuple<int64_t, int64_t, double> length_of(const std::string& text, const std::vector<std::string>& overrides) {
  const TrainConfig t = load_config_text(text, "x.yaml", overrides).train;
  return {t.steps, t.tokens, t.epochs};
}

TEST(Lengths, OfTheCommandLineTakeThePlaceOfThoseOfTheFile) {
  using Length = std::tuple<int64_t, int64_t, double>;
  const std::string steps = "train: {steps: 50}", tokens = "train: {tokens: 900}", none = "train: {seed: 2}";
  EXPECT_EQ(length_of(steps, {}), Length(50, 0, 0));
  EXPECT_EQ(length_of(steps, {"train.tokens=70"}), Length(0, 70, 0));
  EXPECT_EQ(length_of(steps, {"train.epochs=0.5"}), Length(0, 0, 0.5));
  EXPECT_EQ(length_of(tokens, {"train.steps=7"}), Length(7, 0, 0));
  EXPECT_EQ(length_of(tokens, {"train.epochs=2"}), Length(0, 0, 2));
  EXPECT_EQ(length_of(none, {"train.tokens=70"}), Length(0, 70, 0));
  // As before there were units: a length that is none takes no other's place.
  EXPECT_EQ(length_of(steps, {"train.tokens=0"}), Length(50, 0, 0));
  EXPECT_EQ(length_of(steps, {"~train.steps", "train.tokens=70"}), Length(0, 70, 0));
  EXPECT_EQ(length_of(steps, {"train.steps=0", "train.tokens=70"}), Length(0, 70, 0));
  EXPECT_EQ("command line: train.steps: train.tokens gives the length too; remove one of them",
            error_of<ConfigError>([&] {
              length_of(none, {"train.tokens=70", "train.steps=3"});
            }));
  EXPECT_TRUE(contains(error_of<ConfigError>([&] { length_of("train: {steps: 5, tokens: 100}", {}); }), "x.yaml:1: "));
  EXPECT_EQ("train.tokens", load_config_text(steps, "x.yaml", {"train.tokens=70"}).origins.at("train.steps"));
}

TEST(Lengths, OfTheWarmUpOnTheCommandLineTakeThePlaceOfThoseOfTheFile) {
  const auto warmup = [](const std::string& text, const char* override_text) {
    const OptimConfig o = load_config_text(text, "x.yaml", {override_text}).optim;
    return std::pair(o.warmup_steps, o.warmup_tokens);
  };
  EXPECT_EQ(warmup("optim: {warmup_steps: 20}", "optim.warmup_tokens=70"), (std::pair<int64_t, int64_t>(-1, 70)));
  EXPECT_EQ(warmup("optim: {warmup_tokens: 70}", "optim.warmup_steps=0"), (std::pair<int64_t, int64_t>(0, 0)));
  EXPECT_EQ(warmup("optim: {warmup_tokens: 70}", "optim.lr=1"), (std::pair<int64_t, int64_t>(-1, 70)));
}

TEST(Lengths, AreSaidWhereARunEnds) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.optim.warmup_steps = 0;
  spit(dir / "run.yaml", to_yaml(c));
  Program program({"train", dir / "run.yaml", concat("train.tokens=", 2 * kInStep)});
  EXPECT_EQ(0, program.wait()) << program.err();
  EXPECT_TRUE(contains(program.out(), "finished at step 2 of 2\n")) << program.out();
}

}  // namespace
}  // namespace mmfree
