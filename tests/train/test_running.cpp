// What evaluations on the way decide: which checkpoints stay, and when a run ends early. And gradients that are
// outliers.
#include <gtest/gtest.h>

#include "core/ops/adamw.h"
#include "tests/support/training.h"
#include "tests/support/unsteady.h"

namespace mmfree {
namespace {
namespace fs = std::filesystem;

/// Loss of each evaluation but the first, before any step, and the last.
std::map<int64_t, double> evaluations_on_the_way(const RunConfig& c) {
  std::map<int64_t, double> losses;
  for (const auto& row : all_metrics(c.train.run_dir))
    if (row.contains("val/loss") && row["step"] > 0 && row["step"] < c.train.steps)
      losses[row["step"]] = row["val/loss"];
  return losses;
}

int64_t best_of(const std::map<int64_t, double>& losses) {
  return std::min_element(losses.begin(), losses.end(), [](auto& a, auto& b) { return a.second < b.second; })->first;
}

/// Trains to the end in processes that make one step each.
RunResult in_single_steps(RunConfig c) {
  c.train.resume = {ResumeFrom::newest_if_any};
  c.train.max_time = 1e-9;
  RunResult r;
  text_of([&] {
    for (int i = 0; i < 1000 && !r.finished; ++i) r = train(c);
  });
  return r;
}

/// A run whose evaluations soon become worse: its rate rises all the time.
RunConfig worsening(const std::string& run_dir) {
  RunConfig c = tiny_run(run_dir);
  c.train.steps = 24;
  c.optim.lr = 2;
  c.optim.warmup_steps = 24;
  c.train.eval_every = 2;
  c.train.save_every = 3;
  c.train.keep_last = 2;
  return c;
}

TEST(Keep, LastOnesMultiplesAndTheBest) {
  const TempDir dir;
  RunConfig c = worsening(dir / "run");
  c.train.keep_best = true;
  c.train.keep_every = 12;
  const RunResult r = train(c);
  const auto losses = evaluations_on_the_way(c);
  ASSERT_EQ(11u, losses.size());
  const int64_t best = best_of(losses);
  ASSERT_LT(best, 12) << "or the test tests nothing";
  EXPECT_EQ(checkpoint_steps(dir / "run"), (std::vector<int64_t>{best, 12, 21, 24}));
  EXPECT_EQ(best, r.best_step);
  EXPECT_EQ(losses.at(best), r.best_loss);
  for (const int64_t step : checkpoint_steps(dir / "run"))
    EXPECT_NO_THROW(Checkpoint(checkpoint_path(dir / "run", step))) << step;
  // It is a checkpoint like others.
  RunConfig plain = worsening(dir / "plain");
  plain.train.steps = 24, plain.train.save_every = 1, plain.train.keep_last = 100;
  train(plain);
  EXPECT_EQ(learned(checkpoint_path(dir / "plain", best)), learned(checkpoint_path(dir / "run", best)));
  EXPECT_EQ(learned(checkpoint_path(dir / "plain", 24)), learned(checkpoint_path(dir / "run", 24)));
}

TEST(Keep, TheBestIsTheSameIfTheRunIsCut) {
  const TempDir dir;
  RunConfig whole = worsening(dir / "whole"), cut = worsening(dir / "cut");
  for (RunConfig* c : {&whole, &cut}) c->train.keep_best = true;
  const RunResult r = train(whole), s = in_single_steps(cut);
  EXPECT_TRUE(s.finished);
  EXPECT_EQ(r.best_step, s.best_step);
  EXPECT_EQ(r.best_loss, s.best_loss);
  EXPECT_EQ(timeless_metrics(dir / "whole"), timeless_metrics(dir / "cut"));
  EXPECT_TRUE(fs::exists(checkpoint_path(dir / "cut", s.best_step)));
  const Checkpoint a(checkpoint_path(dir / "whole", 24)), b(checkpoint_path(dir / "cut", 24));
  EXPECT_EQ(to_json(a.state()), to_json(b.state()));
}

TEST(Keep, ABestThatCannotBeSavedTakesTheOlderOneNotAway) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.eval_every = 2;
  c.train.keep_best = true;
  c.train.keep_last = 1;
  c.train.save_every = 5;
  std::string said = text_of([&] {
    Trainer trainer(c, true, false);
    for (const int64_t step : {6, 8, 10}) fs::create_directories(checkpoint_path(dir / "run", step) + "/in the way");
    EXPECT_EQ(12, trainer.run().best_step) << "the loss falls all the time";
  });
  EXPECT_TRUE(contains(said, "step-00000008.h5: exists and is not a regular file")) << said;
  EXPECT_NO_THROW(Checkpoint(checkpoint_path(dir / "run", 4)));
  EXPECT_EQ(4, Checkpoint(checkpoint_path(dir / "run", 12)).state().evaluations.best_step);
}

TEST(Keep, TheEndIsTheBestIfEvaluationsOnTheWayScoredAsMuch) {
  const TempDir dir;
  for (const int64_t most : {int64_t(0), int64_t(1), int64_t(1) << 40}) {
    RunConfig c = tiny_run(dir / concat("run-", most));
    c.train.eval_every = 4;
    c.train.keep_best = true;
    c.train.eval_tokens = most;
    const RunResult r = train(c);
    ASSERT_TRUE(r.valid.has_value());
    if (most == 1) {
      EXPECT_LT(r.best_step, 12) << "a loss of one token is not compared with that of all";
    } else {
      EXPECT_EQ(12, r.best_step) << most;
      EXPECT_EQ(r.valid->loss(), r.best_loss) << most;
    }
  }
}

TEST(EarlyStop, EndsARunThatGainsNoMoreAndSaysWhy) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.eval_every = 2;
  c.train.early_stop = 3;
  c.optim.lr = 0;
  const RunResult r = train(c);
  EXPECT_TRUE(r.finished);
  EXPECT_EQ(6, r.step) << "a gain before the first step, and none in the three evaluations after it";
  EXPECT_TRUE(contains(r.early, "in 3 evaluations (train.early_stop)")) << r.early;
  EXPECT_TRUE(r.valid);
  EXPECT_EQ(checkpoint_steps(dir / "run"), (std::vector<int64_t>{6}));
  const auto rows = timeless_metrics(dir / "run");
  // Started again it has nothing to do, unless it is to be more patient.
  c.train.resume = {ResumeFrom::newest};
  text_of([&] { EXPECT_EQ(6, train(c).step); });
  EXPECT_EQ(rows, timeless_metrics(dir / "run"));
  c.train.early_stop = 4;
  text_of([&] { EXPECT_EQ(8, train(c).step); });
  RunConfig cut = c;
  cut.train.run_dir = dir / "cut";
  EXPECT_EQ(8, in_single_steps(cut).step);
  EXPECT_EQ(timeless_metrics(dir / "run"), timeless_metrics(dir / "cut"));
  EXPECT_EQ(learned(checkpoint_path(dir / "run", 8)), learned(checkpoint_path(dir / "cut", 8)));
}

TEST(EarlyStop, AGainIsMoreThanItsDelta) {
  EvaluationHistory e;
  e.add(0, 5, 0.5);
  e.add(1, 4.5, 0.5);
  EXPECT_EQ(1, e.without_gain);
  e.add(2, 4.4, 0.5);
  EXPECT_EQ(0, e.without_gain) << "slow gains add up";
  EXPECT_EQ(4.4, e.least);
  e.add(3, std::nan(""), 0.5);
  e.add(4, 4.4, 0);
  EXPECT_EQ(2, e.without_gain);
  EXPECT_EQ(4, e.step);
}

/// The run without a limit of skipped steps.
RunConfig with_outliers(const TempDir& dir, const std::string& run_dir) {
  RunConfig c = unsteady_run(dir, run_dir);
  c.train.skip_limit = 40;
  return c;
}

TEST(Outliers, SkipTheirStep) {
  const TempDir dir;
  RunConfig c = with_outliers(dir, dir / "run");
  const std::string said = text_of([&] { train(c); });
  const Checkpoint last(checkpoint_path(dir / "run", kUnsteadySteps));
  EXPECT_EQ(kUnsteadySteps - 4, last.state().updates);
  for (const int64_t step : {30, 31, 46, 47}) EXPECT_TRUE(contains(said, concat("step ", step, ": loss "))) << said;
  EXPECT_TRUE(contains(said, ", more than 2 times the mean ")) << said;
  // The same decisions from the norms that the metrics tell.
  double mean = 0;
  int64_t norms = 0, outliers = 0;
  for (const auto& row : timeless_metrics(dir / "run")) {
    if (!row.contains("train/grad_norm")) continue;
    const double norm = row["train/grad_norm"];
    const bool outlier = norms >= 20 && norm > 2 * mean;
    outliers += outlier;
    if (!outlier) mean += (norm - mean) / double(std::min<int64_t>(++norms, 100));
  }
  EXPECT_EQ(outliers, 4);
  EXPECT_EQ(mean, last.state().norms.mean);
  EXPECT_EQ(norms, last.state().norms.count);
  // Without the key the same norms are told, and every update is made.
  c.train.skip_outliers = 0;
  c.train.run_dir = dir / "all";
  train(c);
  EXPECT_EQ(kUnsteadySteps, Checkpoint(checkpoint_path(dir / "all", kUnsteadySteps)).state().updates);
}

TEST(Outliers, AreTheSameIfTheRunIsCut) {
  const TempDir dir;
  const RunConfig c = with_outliers(dir, dir / "whole");
  text_of([&] { train(c); });
  EXPECT_TRUE(in_single_steps(with_outliers(dir, dir / "cut")).finished);
  EXPECT_EQ(learned(checkpoint_path(dir / "whole", kUnsteadySteps)),
            learned(checkpoint_path(dir / "cut", kUnsteadySteps)));
  EXPECT_EQ(timeless_metrics(dir / "whole"), timeless_metrics(dir / "cut"));
}

TEST(Outliers, InARowAreADivergence) {
  const TempDir dir;
  RunConfig c = unsteady_run(dir, dir / "run");
  c.train.rollback = 0;
  const std::string said = error_of<DivergedError>([&] { train(c); });
  EXPECT_TRUE(contains(said, "step 31: 2 steps in a row")) << said;
  EXPECT_TRUE(contains(said, "gradients that are outliers")) << said;
}

}  // namespace
}  // namespace mmfree
