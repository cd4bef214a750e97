// Training by several processes: the same bits as by one, whatever their number, also when it changes on the way.
#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "tests/support/rank_run.h"
#include "tests/support/tiny_run.h"
#include "train/run/run_folder.h"

namespace mmfree {
namespace {
namespace fs = std::filesystem;

struct Outcome {
  std::vector<nlohmann::json> metrics;
  std::map<std::string, std::string> learned;
};

/// A run of four leaves that evaluates and saves on its way, with what leaves, rows and ranks could get wrong: targets
/// that are not scored, a state that is carried from step to step, and several precisions.
RunConfig leafy_run() {
  RunConfig c = tiny_run("run");
  mix_precisions(c.model);
  c.model.precision_rules.resize(2);
  c.data.reset_state = c.data.carry_state = true;
  c.train.batch_size = 8;
  c.train.leaves = 4;
  c.train.micro_batch_size = 1;
  c.train.steps = 16;
  c.train.eval_every = 6;
  c.train.save_every = 5;
  return c;
}

class Ranks : public testing::Test {
 protected:
  Ranks() { spit(dir_ / "run.yaml", to_yaml(leafy_run())); }

  std::unique_ptr<Processes> start(int ranks, const std::string& name, const std::vector<std::string>& more = {},
                                   By by = By::tcp) const {
    std::vector<std::string> words = {program_path(), "train", dir_ / "run.yaml", "train.run_dir=" + (dir_ / name),
                                      "--resume",     "-q"};
    words.insert(words.end(), more.begin(), more.end());
    return start_ranks(by, ranks, words);
  }
  /// Trains to the end with so many ranks.
  Outcome run(int ranks, const std::string& name, const std::vector<std::string>& more = {}, By by = By::tcp) const {
    const auto processes = start(ranks, name, more, by);
    expect_end(*processes, 0);
    return outcome(name);
  }
  static void expect_end(Processes& processes, int status) {
    EXPECT_EQ(std::vector<int>(processes.count(), status), processes.wait(100));
    for (size_t i = 0; i < processes.count() && HasFailure(); ++i) ADD_FAILURE() << i << ": " << processes.err(i);
  }
  Outcome outcome(const std::string& name) const {
    return {timeless_metrics(dir_ / name), learned(checkpoint_path(dir_ / name, leafy_run().train.steps))};
  }
  static void expect_same(const Outcome& expected, const Outcome& got) {
    EXPECT_EQ(expected.metrics, got.metrics);
    EXPECT_TRUE(expected.learned == got.learned);
  }
  TempDir dir_;
};

TEST_F(Ranks, AnyNumberLearnsTheSame) {
  const Outcome one = run(1, "one");
  EXPECT_GT(one.metrics.size(), 16u);
  expect_same(one, run(2, "two"));
  expect_same(one, run(4, "four"));
}

TEST_F(Ranks, TheirNumberMayChangeAtEachStart) {
  const Outcome whole = run(1, "whole");
  size_t lines = 0;
  for (const int ranks : {4, 1, 2}) {
    const auto processes = start(ranks, "changing");
    lines += 5;
    while (processes->wait(0.001).back() == Processes::kRunning && all_metrics(dir_ / "changing").size() < lines) {
    }
    processes->signal(processes->count() - 1, SIGTERM);
    expect_end(*processes, 75);
  }
  expect_same(whole, run(4, "changing"));
}

}  // namespace
}  // namespace mmfree
