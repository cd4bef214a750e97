// The time left and the rates that a run tells, by a clock that the test moves: where every step, evaluation and pause
// takes the same time, what is told is what then happens.
#include <gtest/gtest.h>

#include <cmath>

#include "core/ranks/group.h"
#include "tests/support/training.h"
#include "train/run/pace.h"
#include "train/run/reporter.h"
#include "train/run/run_batches.h"

namespace mmfree {
namespace {

TEST(Pace, CountsTheFirstTwoStepsUntilThereAreAsManyOthers) {
  double now = 100;
  Pace pace([&] { return now; });
  now = 500;
  pace.start();
  EXPECT_EQ(0, pace.seconds_for(10, 1000)) << "nothing is known";
  EXPECT_EQ(0, pace.tokens_per_second());
  const double lengths[] = {30, 10, 2, 2, 2}, estimates[] = {300, 200, 140, 20, 20};
  for (int i = 0; i < 5; ++i) {
    now += lengths[i];
    pace.step(64);
    EXPECT_EQ(estimates[i], pace.seconds_for(10, 1000)) << "after step " << i + 1;
  }
  EXPECT_EQ(46, pace.seconds());
  EXPECT_EQ(5 * 64 / 46.0, pace.tokens_per_second());
}

TEST(Pace, EvaluationsAndPausesAreTimeButNoTraining) {
  double now = 0;
  Pace pace([&] { return now; });
  const auto pause = [&](double seconds, int64_t evaluated) {
    now += seconds;
    pace.pause(seconds, evaluated);
  };
  pause(8, 100);
  for (int i = 0; i < 6; ++i) {
    pause(1, 0);
    now += 4;
    pace.step(64);
  }
  EXPECT_EQ(8 + 6 * 5, pace.seconds());
  EXPECT_EQ(6 * 4, pace.training());
  EXPECT_EQ(16, pace.tokens_per_second());
  EXPECT_EQ(10 * 5, pace.seconds_for(10, 0));
  EXPECT_EQ(10 * 5 + 20, pace.seconds_for(10, 250)) << "longer evaluations take longer";
}

/// What a run of this many seconds for each thing would be.
struct Costs {
  double first_step = 512, step = 32, pause = 8, token_evaluated = 0.25;
};

/// A run without a model, whose clock moves by `costs`. Its reporter is called as Trainer does.
class Clockwork {
 public:
  explicit Clockwork(const RunConfig& config, const Costs& costs = {}) : config_(config), costs_(costs) {}

  /// Goes from `from` to `to`, its own last step if that is 0, and returns what stands in each line of the steps: the
  /// time left that was told, and that it then was.
  std::vector<std::pair<std::string, std::string>> run(const LoopState& from, int64_t to = 0) {
    const RunConfig& c = config_;
    const Corpus corpus(c.data);
    const Batches batches(corpus, batch_options(c));
    const ComputeTarget target;
    Reporter reporter(c, target, batches, false, lone_group(), [this] { return now_; });
    std::vector<double> lines;
    const std::string said = text_of([&] {
      std::filesystem::create_directories(c.train.run_dir);
      reporter.open_metrics(c.train.run_dir + "/metrics.jsonl", from.step);
      reporter.start(from, {kOnTheWay, kAtEnd});
      for (int64_t step = from.step; step < (to ? to : c.train.steps);) {
        pause(reporter, costs_.pause, 0);
        now_ += step == from.step ? costs_.first_step : costs_.step;
        StepResult result{++step, step_tokens(), 1.0, {}};
        reporter.step(result, 0);
        lines.push_back(now_);
        if (step % c.train.eval_every == 0 && step < c.train.steps) evaluate(reporter, step, kOnTheWay);
      }
      if (!to) evaluate(reporter, c.train.steps, kAtEnd);
    });
    std::vector<std::pair<std::string, std::string>> all;
    size_t at = 0;
    for (const double line : lines) {
      at = said.find("  eta ", at) + 6;
      all.emplace_back(said.substr(at, said.find('\n', at) - at), format_duration(now_ - line));
    }
    return all;
  }
  int64_t step_tokens() const { return config_.train.batch_size * config_.data.seq_len; }

 private:
  static constexpr int64_t kOnTheWay = 256, kAtEnd = 4096;

  void pause(Reporter& reporter, double seconds, int64_t evaluated) {
    const Reporter::Pause not_training(reporter, evaluated);
    now_ += seconds;
  }
  void evaluate(Reporter& reporter, int64_t step, int64_t tokens) {
    pause(reporter, costs_.token_evaluated * double(tokens), tokens);
    reporter.evaluation(step, step * step_tokens(), {});
  }

  RunConfig config_;
  Costs costs_;
  double now_ = 1000;
};

RunConfig timed_run(const std::string& run_dir) {
  RunConfig c = tiny_run(run_dir);
  c.train.steps = 40;
  c.train.eval_every = 8;
  c.train.batch_size = 8;
  c.train.micro_batch_size = 2;
  c.train.tensorboard = false;
  return c;
}

TEST(Eta, IsTheTimeThatARunThenTakes) {
  const TempDir dir;
  const RunConfig c = timed_run(dir / "run");
  const auto lines = Clockwork(c).run({});
  ASSERT_EQ(40u, lines.size());
  // The first evaluation comes after the line of step 8.
  for (size_t i = 8; i < lines.size(); ++i) EXPECT_EQ(lines[i].second, lines[i].first) << "step " << i + 1;
  EXPECT_EQ(format_duration(36 * (32 + 8)), lines[3].first) << "before it, steps alone are known";
}

TEST(Eta, RatesAreThoseOfTheStepsSinceTheLineBefore) {
  const TempDir dir;
  RunConfig c = timed_run(dir / "run");
  c.train.log_every = 40;
  Clockwork(c).run({});
  std::vector<double> rates;
  for (const auto& row : all_metrics(c.train.run_dir))
    if (row.contains("train/loss")) rates.push_back(row["train/tokens_per_sec"]);
  ASSERT_EQ(2u, rates.size());
  EXPECT_EQ(8 * 17 / 512.0, rates[0]);
  EXPECT_EQ(8 * 17 / 32.0, rates[1]) << "of 39 steps, without what stood between them";
}

TEST(Eta, IsRightAfterAResumeWithAnotherBatchAndLength) {
  const TempDir dir;
  RunConfig c = timed_run(dir / "run");
  Clockwork(c).run({}, 16);
  LoopState state;
  state.step = 16, state.tokens = 16 * 8 * 17;
  // Twice the batch takes longer, and the run is to be longer.
  c.train.batch_size = 16;
  c.train.steps = 60;
  const auto lines = Clockwork(c, {300, 50, 4, 0.5}).run(state);
  ASSERT_EQ(44u, lines.size());
  for (size_t i = 8; i < lines.size(); ++i) EXPECT_EQ(lines[i].second, lines[i].first) << "step " << 17 + i;
  const Corpus corpus(c.data);
  const Batches batches(corpus, batch_options(c));
  int64_t step = 0;
  for (const auto& row : all_metrics(c.train.run_dir)) {
    if (!row.contains("train/loss")) continue;
    const int64_t tokens = step++ < 16 ? step * 8 * 17 : (16 * 8 + (step - 16) * 16) * 17;
    EXPECT_EQ(step, row["step"].get<int64_t>());
    EXPECT_EQ(tokens, row["train/tokens"].get<int64_t>());
    EXPECT_EQ(batches.epochs(tokens / 17), row["train/epoch"].get<double>());
    const double seconds = step == 1 ? 512 : step <= 16 ? 32 : step == 17 ? 300 : 50;
    EXPECT_EQ((step <= 16 ? 8 : 16) * 17 / seconds, row["train/tokens_per_sec"].get<double>()) << step;
    EXPECT_EQ(1000 * seconds, row["train/step_time_ms"].get<double>()) << step;
  }
  EXPECT_EQ(60, step);
}

TEST(Eta, RatesAreRightAfterARollback) {
  const TempDir dir;
  const RunConfig c = timed_run(dir / "run");
  const Corpus corpus(c.data);
  const Batches batches(corpus, batch_options(c));
  double now = 0;
  const ComputeTarget target;
  Reporter reporter(c, target, batches, false, lone_group(), [&] { return now; });
  std::filesystem::create_directories(c.train.run_dir);
  text_of([&] {
    reporter.open_metrics(dir / "run/metrics.jsonl", 0);
    reporter.start({}, {});
    for (const int64_t step : {1, 2, 3, 4, 5, 6, 4}) {
      if (step == 4 && now > 100) {
        LoopState state;
        state.step = 3, state.tokens = 3 * 8 * 17;
        now += 7;
        reporter.go_back(state);
      }
      now += 32;
      reporter.step({step, 8 * 17, 1.0, {}}, 0);
    }
  });
  const auto rows = all_metrics(dir / "run");
  ASSERT_EQ(4u, rows.size());
  EXPECT_EQ(8 * 17 / 32.0, rows[3]["train/tokens_per_sec"].get<double>()) << "the way back is no step";
  EXPECT_EQ(4 * 8 * 17, rows[3]["train/tokens"].get<int64_t>());
}

/// What the trainer gives the reporter: the steps that lengths in tokens and epochs come to after a change, and how
/// long evaluations are.
TEST(Eta, OfARunIsForItsStepsAfterAChange) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  train(c);
  c.train.resume = {ResumeFrom::newest};
  c.train.batch_size = 8;
  c.train.micro_batch_size = 2;
  c.train.steps = 0, c.train.tokens = 12 * 4 * 17 + 3 * 8 * 17;
  const std::string said = text_of([&] { EXPECT_EQ(15, Trainer(c, false, true).run().step); });
  EXPECT_TRUE(contains(said, "\nstep 13/15  86%  ")) << said;
  EXPECT_TRUE(contains(said, "eta 0.0s\n")) << "at the last one: " << said;
  for (const auto& row : all_metrics(dir / "run")) {
    if (!row.contains("train/loss")) continue;
    const int64_t step = row["step"], rows = step > 12 ? 8 : 4;
    EXPECT_EQ(17 * (std::min<int64_t>(step, 12) * 4 + std::max<int64_t>(step - 12, 0) * 8),
              row["train/tokens"].get<int64_t>());
    const double in_step = row["train/tokens_per_sec"].get<double>() * row["train/step_time_ms"].get<double>() / 1000;
    EXPECT_NEAR(in_step, double(rows * 17), 1e-9 * double(rows * 17));
  }
}

TEST(Eta, KnowsHowManyTokensAnEvaluationScores) {
  const RunConfig c = tiny_run("run");
  const TokenShards shards(c.data.valid);
  const Model m = tiny_model(c.model);
  for (const int64_t limit : {int64_t(0), int64_t(1), int64_t(50), int64_t(1) << 40})
    EXPECT_EQ(evaluate(*m.lm, TokenSource::shards(shards), {17, limit}).tokens, tokens_scored(shards, limit)) << limit;
  DataConfig data = c.data;
  data.eval_sets = {{"a", c.data.valid}, {"b", c.data.valid}};
  EXPECT_EQ(100, EvalSets(data, shards.info()).tokens(50));
}

}  // namespace
}  // namespace mmfree
