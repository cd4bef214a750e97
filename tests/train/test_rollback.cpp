// A run that diverges goes back to its last good checkpoint and leaves out the data since, to the same bits however
// often it is cut.
#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>
#include <limits>
#include <sstream>
#include <thread>

#include "optim/adamw.h"
#include "tests/support/event_reader.h"
#include "tests/support/program.h"
#include "tests/support/training.h"
#include "tests/support/unsteady.h"
#include "train/watch/tensorboard.h"

namespace mmfree {
namespace {
namespace fs = std::filesystem;

constexpr int64_t kSteps = kUnsteadySteps;

LoopState state_at(const std::string& run_dir, int64_t step) {
  return Checkpoint(checkpoint_path(run_dir, step)).state();
}

TEST(Rollback, LeavesOutTheDataAndMakesAllSteps) {
  const TempDir dir;
  const RunConfig c = unsteady_run(dir, dir / "run");
  RunResult result;
  const std::string said = text_of([&] { result = train(c); });
  EXPECT_TRUE(result.finished);
  EXPECT_NEAR(result.first_loss, std::log(323.0), 0.3) << "of the first step, not of one behind a rollback";
  EXPECT_TRUE(contains(said, "step 31: 2 steps in a row were skipped: the run diverges and goes back to " +
                                 checkpoint_path(dir / "run", 28)))
      << said;
  EXPECT_TRUE(contains(said, "the data of the steps from 29 to 31 are left out (rollback 1 of 5)")) << said;
  EXPECT_TRUE(contains(said, "the data of the steps from 41 to 44 are left out (rollback 2 of 5)")) << said;
  const LoopState end = state_at(dir / "run", kSteps);
  EXPECT_EQ(2, end.rollbacks);
  EXPECT_EQ(4 * (3 + 4), end.left_out);
  EXPECT_EQ(kSteps * 4 * 17, end.tokens);
  EXPECT_EQ(kSteps, end.updates);
  // One line for each step, and the epochs count what was left out.
  int64_t step = 0, evaluations = 0;
  double epoch = 0;
  for (const auto& row : timeless_metrics(dir / "run")) {
    evaluations += row.contains("val/loss");
    if (!row.contains("train/loss")) continue;
    EXPECT_EQ(++step, row["step"].get<int64_t>());
    epoch = row["train/epoch"];
  }
  EXPECT_EQ(kSteps, step);
  EXPECT_EQ(8, evaluations) << "at 0, 8, … 48 and the end";
  EXPECT_EQ(epoch, double(4 * kSteps + end.left_out) / (80 * 4));
}

/// The steps of a file's lines that have `key`.
std::vector<int64_t> steps_with(const std::string& path, const std::string& key) {
  std::vector<int64_t> steps;
  std::istringstream lines(slurp(path));
  for (std::string line; std::getline(lines, line);)
    if (const auto row = nlohmann::json::parse(line); row.contains(key)) steps.push_back(row["step"]);
  return steps;
}

TEST(Rollback, TakesTelemetryAndSamplesAlong) {
  const TempDir dir;
  RunConfig c = unsteady_run(dir, dir / "run");
  c.data.tokenizer = TinyCorpus::get().tokenizer_path();
  c.train.telemetry_every = 10, c.train.sample_every = 10, c.train.sample_tokens = 2, c.train.sample_prompts = {"ka"};
  train(c);
  EXPECT_EQ((std::vector<int64_t>{10, 20, 30, 40, 50}), steps_with(dir / "run/metrics.jsonl", "ternary/all/zeros"));
  EXPECT_EQ((std::vector<int64_t>{10, 20, 30, 40, 50, 52}), steps_with(dir / "run/samples.jsonl", "text"));
}

TEST(Rollback, IsTheRunWithoutTheseData) {
  const TempDir dir;
  RunConfig c = unsteady_run(dir, dir / "run");
  c.train.steps = 30;
  c.train.skip_limit = 1;  // the first bad batch is one too many
  c.train.keep_last = 100;
  text_of([&] { EXPECT_TRUE(train(c).finished); });
  // A run whose data are the good ones alone, in the same order.
  RunConfig good = without_first_bad_batches(c, dir);
  train(good);
  EXPECT_EQ(2, state_at(dir / "run", 30).rollbacks);
  EXPECT_EQ(learned(checkpoint_path(dir / "run", 30)), learned(checkpoint_path(dir / "good", 30)));
}

TEST(Rollback, ShowsNoStepTwiceInTensorBoard) {
  const TempDir dir;
  text_of([&] { train(unsteady_run(dir, dir / "run")); });
  std::vector<int64_t> steps;
  for (const std::string& file : event_files(dir / "run/tb")) {
    EventFileContent content = read_events(slurp(file));
    for (const EventFileContent::Point& p : content.points["train/loss"]) steps.push_back(p.step);
  }
  ASSERT_EQ(size_t(kSteps), steps.size());
  for (size_t i = 0; i < steps.size(); ++i) EXPECT_EQ(int64_t(i + 1), steps[i]);
}

TEST(Rollback, OfARunThatIsCutAfterEachStepIsTheSame) {
  const TempDir dir;
  for (const bool carry : {false, true}) {
    const TempDir data;
    RunConfig whole = unsteady_run(data, dir / concat("whole", carry), carry), cut = whole;
    cut.train.run_dir = dir / concat("cut", carry);
    text_of([&] { EXPECT_TRUE(train(whole).finished); });
    EXPECT_EQ(2, state_at(whole.train.run_dir, kSteps).rollbacks);
    cut.train.resume = {ResumeFrom::newest_if_any};
    cut.train.max_time = 1e-9;
    text_of([&] {
      int starts = 0;
      while (!train(cut).finished && ++starts < 1000) {
      }
    });
    EXPECT_EQ(to_json(state_at(whole.train.run_dir, kSteps)), to_json(state_at(cut.train.run_dir, kSteps)));
    EXPECT_EQ(learned(checkpoint_path(whole.train.run_dir, kSteps)),
              learned(checkpoint_path(cut.train.run_dir, kSteps)));
    EXPECT_EQ(timeless_metrics(whole.train.run_dir), timeless_metrics(cut.train.run_dir));
  }
}

TEST(Rollback, OfARunThatIsKilledIsTheSame) {
  const TempDir dir;
  RunConfig c = unsteady_run(dir, dir / "whole");
  text_of([&] { train(c); });
  c.train.run_dir = dir / "killed";
  spit(dir / "run.yaml", to_yaml(c));
  int status = -1, kills = 0;
  for (int after = 3; status != 0 && kills < 40; after += 4, ++kills) {
    Program program({"train", dir / "run.yaml", "--resume", "--quiet"});
    const size_t lines = all_metrics(dir / "killed").size() + 1;
    for (int ms = 0; program.running() && (all_metrics(dir / "killed").size() < lines || ms < after); ++ms)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (kills < 12) program.signal(SIGKILL);
    status = program.wait();
  }
  EXPECT_EQ(0, status);
  EXPECT_EQ(to_json(state_at(dir / "whole", kSteps)), to_json(state_at(dir / "killed", kSteps)));
  EXPECT_EQ(learned(checkpoint_path(dir / "whole", kSteps)), learned(checkpoint_path(dir / "killed", kSteps)));
  EXPECT_EQ(timeless_metrics(dir / "whole"), timeless_metrics(dir / "killed"));
}

TEST(Rollback, IsMadeAtMostSoOften) {
  const TempDir dir;
  RunConfig c = unsteady_run(dir, dir / "run");
  c.train.rollback = 1;
  EXPECT_TRUE(contains(error_of<DivergedError>([&] { train(c); }), "2 steps in a row"));
  // Started again it knows that it went back once.
  c.train.resume = {ResumeFrom::newest};
  EXPECT_TRUE(contains(error_of<DivergedError>([&] { train(c); }), "2 steps in a row"));
  c.train.rollback = 5;
  text_of([&] { EXPECT_TRUE(train(c).finished); });
  RunConfig whole = c;
  whole.train.resume = {};
  whole.train.run_dir = dir / "whole";
  text_of([&] { train(whole); });
  EXPECT_EQ(learned(checkpoint_path(dir / "run", kSteps)), learned(checkpoint_path(dir / "whole", kSteps)));
}

TEST(Rollback, OfAStateThatIsBrokenEndsAtItsLimit) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.steps = 3, c.train.save_every = 1, c.train.skip_limit = 4, c.train.rollback = 2;
  train(c);
  const std::string path = checkpoint_path(dir / "run", 3);
  {
    ParamStore params(parameter_specs(c.model), DType::f32);
    AdamW optimizer(params, c.optim);
    const LoopState state = [&] {
      const Checkpoint file(path);
      file.load(params, &optimizer);
      return file.state();
    }();
    Tensor weight = params["model.layers.1.mlp.down_proj.weight"].value();
    weight.mut<float>()[5] = std::numeric_limits<float>::max();
    save_checkpoint(path, c, params, {params.values(), optimizer.states()}, state, "");
  }
  fs::remove(checkpoint_path(dir / "run", 1));
  fs::remove(checkpoint_path(dir / "run", 2));
  c.train.steps = 30;
  c.train.resume = {ResumeFrom::newest};
  const std::string message = error_of<DivergedError>([&] { train(c); });
  // The checkpoints of the skipped steps 4 to 6 are no way out.
  EXPECT_TRUE(contains(message, "step 7: 4 steps in a row")) << message;
  EXPECT_EQ(2, state_at(dir / "run", 3).rollbacks);
  EXPECT_EQ(checkpoint_steps(dir / "run"), (std::vector<int64_t>{3, 4, 5, 6}));
}

TEST(Retention, KeepsTheNewestGoodCheckpointForARollback) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.save_every = 4;
  train(c);
  const std::string run = dir / "run";
  ParamStore params(parameter_specs(c.model), DType::f32);
  AdamW optimizer(params, c.optim);
  LoopState state;
  for (const auto& [step, skipped] : {std::pair{12, 2}, {13, 0}}) {
    state.step = step, state.skipped_in_row = skipped;
    save_checkpoint(checkpoint_path(run, step), c, params, {params.values(), optimizer.states()}, state, "");
  }
  EXPECT_EQ(good_checkpoints(run, 4, 100), (std::vector<int64_t>{8, 4}));
  EXPECT_EQ(good_checkpoints(run, 4, 8), (std::vector<int64_t>{4}));
  retain_checkpoints(run, 13, {1, 0, {}, 4});
  EXPECT_EQ(checkpoint_steps(run), (std::vector<int64_t>{8, 13}));
}

}  // namespace
}  // namespace mmfree
