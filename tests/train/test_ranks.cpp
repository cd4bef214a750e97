// Training by several processes: the same bits as by one, whatever their number, also when it changes on the way, when
// they divide their state, and when they are killed.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <tuple>

#include "core/gpu.h"
#include "tests/support/gpu.h"
#include "tests/support/rank_run.h"
#include "tests/support/tiny_run.h"
#include "tests/support/unsteady.h"
#include "train/run/metrics.h"
#include "train/run/run_folder.h"

namespace mmfree {
namespace {

struct Outcome {
  std::vector<nlohmann::json> metrics;
  std::map<int64_t, std::string> digests;  ///< of the weights, by step
  std::map<std::string, std::string> learned;
};

/// A run of four leaves that evaluates and saves on its way, with what leaves, rows and ranks could get wrong: a state
/// that is carried from step to step, several precisions, an accumulation inside leaves.
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
  c.train.save_every = c.train.telemetry_every = 5;
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
  static void expect_end(Processes& processes, int status) {
    EXPECT_EQ(std::vector<int>(processes.count(), status), processes.wait(100));
    for (size_t i = 0; i < processes.count() && HasFailure(); ++i) ADD_FAILURE() << i << ": " << processes.err(i);
  }
  /// Trains to the end with so many ranks.
  Outcome run(int ranks, const std::string& name, const std::vector<std::string>& more = {}, By by = By::tcp) const {
    const auto processes = start(ranks, name, more, by);
    expect_end(*processes, 0);
    return outcome(name);
  }
  Outcome outcome(const std::string& name) const {
    const std::string last = checkpoint_path(dir_ / name, leafy_run().train.steps);
    if (!std::filesystem::exists(last)) return {};
    Outcome outcome{timeless_metrics(dir_ / name), {}, learned(last)};
    for (const auto& [step, digests] : read_digests(dir_ / name + "/metrics.jsonl"))
      if (!digests.weights.empty()) outcome.digests[step] = digests.weights;
    return outcome;
  }
  static void expect_same(const Outcome& expected, const Outcome& got) {
    EXPECT_EQ(expected.metrics, got.metrics);
    EXPECT_EQ(4u, expected.digests.size()) << "three checkpoints were due, and the last";
    EXPECT_EQ(expected.digests, got.digests);
    EXPECT_FALSE(expected.learned.empty());
    EXPECT_TRUE(expected.learned == got.learned);
  }
  /// Whole lines of a run's metrics, which may just be written or cut.
  size_t lines_of(const std::string& name) const {
    const std::string path = dir_ / name + "/metrics.jsonl";
    if (!std::filesystem::exists(path)) return 0;
    const std::string text = slurp(path);
    return size_t(std::count(text.begin(), text.end(), '\n'));
  }
  /// Waits until the run's metrics have so many lines, or it ends.
  void wait_for_lines(Processes& processes, const std::string& name, size_t lines) const {
    while (processes.wait(0.001)[0] == Processes::kRunning && lines_of(name) < lines) {
    }
  }
  TempDir dir_;
};

TEST_F(Ranks, AnyNumberLearnsTheSameWithEveryShard) {
  const Outcome one = run(1, "one");
  EXPECT_GT(one.metrics.size(), 16u);
  expect_same(one, run(2, "two"));
  expect_same(one, run(4, "four"));
  expect_same(one, run(2, "two-optimizer", {"train.shard=optimizer"}));
  expect_same(one, run(4, "four-optimizer", {"train.shard=optimizer"}));
  if (mpirun_problem().empty()) expect_same(one, run(2, "mpi", {"train.shard=optimizer"}, By::mpi));
}

TEST_F(Ranks, DivideGradientsOfOneMicroBatchEach) {
  const std::vector<std::string> whole_leaves = {"train.micro_batch_size=0"};
  const Outcome one = run(1, "one", whole_leaves);
  expect_same(one, run(4, "four", {"train.micro_batch_size=0", "train.shard=gradients"}));
  expect_same(one, run(2, "two", {"train.micro_batch_size=0", "train.shard=gradients"}));
  expect_same(one, run(4, "four-optimizer", {"train.micro_batch_size=0", "train.shard=optimizer"}));
}

// With as many leaves as ranks the gradients of `none` and `optimizer` are exchanged beside the backward pass, in
// leaves of one and of several micro-batches; else behind it.
TEST_F(Ranks, OnGpusLearnTheSameToo) {
  MMFREE_NEEDS_GPU();
  if (gpu::count() < 2) GTEST_SKIP() << "one GPU, two are needed";
  const std::tuple<int, int, std::vector<const char*>> cases[] = {
      {2, 0, {"none", "optimizer", "gradients"}}, {2, 1, {"optimizer"}}, {4, 1, {"optimizer"}}};
  for (const auto& [leaves, micro, shards] : cases) {
    const auto name = [&, leaves = leaves, micro = micro](int ranks, const std::string& shard) {
      return concat(leaves, micro, ranks, shard);
    };
    const auto with = [&, leaves = leaves, micro = micro](int ranks, const std::string& shard) {
      return run(ranks, name(ranks, shard),
                 {"train.device=cuda", concat("train.leaves=", leaves), concat("train.micro_batch_size=", micro),
                  concat("train.shard=", shard)});
    };
    const Outcome one = with(1, "none");
    for (const char* shard : shards) {
      SCOPED_TRACE(concat(leaves, " leaves, micro-batches of ", micro, ", ", shard));
      expect_same(one, with(2, shard));
    }
    std::filesystem::remove(checkpoint_path(dir_ / name(2, "optimizer"), leafy_run().train.steps));
    expect_same(one, with(2, "optimizer"));  // resumes
  }
}

TEST_F(Ranks, TheirNumberMayChangeAtEachStart) {
  const Outcome whole = run(1, "whole");
  size_t lines = 0;
  const std::pair<int, const char*> starts[] = {{4, "optimizer"}, {1, "none"}, {2, "optimizer"}};
  for (const auto& [ranks, shard] : starts) {
    const auto processes = start(ranks, "changing", {concat("train.shard=", shard)});
    wait_for_lines(*processes, "changing", lines += 5);
    processes->signal(processes->count() - 1, SIGTERM);
    expect_end(*processes, 75);
  }
  // A start between two lines of telemetry does not know the codes of the first.
  const auto without_flips = [](Outcome outcome) {
    for (nlohmann::json& row : outcome.metrics)
      for (auto it = row.begin(); it != row.end();) it = it.key().ends_with("/flips") ? row.erase(it) : std::next(it);
    return outcome;
  };
  expect_same(without_flips(whole), without_flips(run(4, "changing")));
}

class RanksThatDiverge : public Ranks {
 protected:
  /// Runs that diverge, with these keys and by these ranks, are the same as alone.
  void expect_to_go_back_together(const std::vector<std::string>& keys,
                                  const std::vector<std::pair<int, const char*>>& starts);
};

void RanksThatDiverge::expect_to_go_back_together(const std::vector<std::string>& keys,
                                                  const std::vector<std::pair<int, const char*>>& starts) {
  std::vector<std::string> unsteady = {"data.train=" + unsteady_shard(dir_, leafy_run().train.batch_size, true),
                                       "data.shuffle=false",
                                       "train.skip_outliers=2",
                                       "train.skip_limit=2",
                                       "train.rollback=5",
                                       concat("train.steps=", kUnsteadySteps),
                                       "train.save_every=4",
                                       "train.keep_last=1",
                                       "train.keep_best=true",
                                       "train.micro_batch_size=0"};
  unsteady.insert(unsteady.end(), keys.begin(), keys.end());
  const auto state = [&](int ranks, const std::string& name, const char* shard) {
    std::vector<std::string> more = unsteady;
    more.push_back(concat("train.shard=", shard));
    const auto processes = start(ranks, name, more);
    expect_end(*processes, 0);
    return to_json(Checkpoint(checkpoint_path(dir_ / name, kUnsteadySteps)).state());
  };
  const std::string one = state(1, "one", "none");
  EXPECT_NE(std::string::npos, one.find("\"rollbacks\":2")) << one;
  for (const auto& [ranks, shard] : starts) {
    const std::string name = concat(ranks, shard);
    EXPECT_EQ(one, state(ranks, name, shard));
    EXPECT_TRUE(learned(checkpoint_path(dir_ / "one", kUnsteadySteps)) ==
                learned(checkpoint_path(dir_ / name, kUnsteadySteps)));
    EXPECT_EQ(timeless_metrics(dir_ / "one"), timeless_metrics(dir_ / name));
    EXPECT_EQ(checkpoint_steps(dir_ / "one"), checkpoint_steps(dir_ / name));
  }
}

TEST_F(RanksThatDiverge, GoBackTogether) { expect_to_go_back_together({}, {{2, "none"}, {4, "gradients"}}); }

// GPUs that read each other's memory then find new places in it. In f32, where the outliers are the CPU's.
TEST_F(RanksThatDiverge, GoBackTogetherOnGpusToo) {
  MMFREE_NEEDS_GPU();
  if (gpu::count() < 2) GTEST_SKIP() << "one GPU, two are needed";
  expect_to_go_back_together({"train.device=cuda", "train.compute=f32", "train.leaves=2"},
                             {{2, "none"}, {2, "optimizer"}, {2, "gradients"}});
}

TEST_F(Ranks, KilledOnesLeaveARunThatGoesOn) {
  const Outcome whole = run(1, "whole");
  std::mt19937 random(5);
  for (int kill = 0; kill < 10; ++kill) {
    const int ranks = kill % 2 ? 4 : 2;
    const auto processes = start(ranks, "killed", {kill % 3 ? "train.shard=optimizer" : "train.shard=none"});
    // Not before the ranks have met: then the others would wait a minute for the one that is missing.
    wait_for_lines(*processes, "killed", lines_of("killed") + 1 + random() % 6);
    const size_t victim = random() % size_t(ranks);
    processes->signal(victim, SIGKILL);
    std::vector<int> statuses = processes->wait(100);
    statuses.erase(statuses.begin() + int(victim));
    // At the very end of a run some may have left before the kill.
    const bool was_done = std::count(statuses.begin(), statuses.end(), 0) > 0;
    for (const int status : statuses)
      EXPECT_TRUE(status == 0 || status == int(Exit::lost)) << status << '\n' << processes->err(0);
    if (was_done) std::filesystem::remove_all(dir_ / "killed");
  }
  expect_same(whole, run(2, "killed"));
}

TEST_F(Ranks, SayInOneLineWhatDoesNotFit) {
  const auto said = [&](int ranks, const std::vector<std::string>& more) {
    const auto processes = start(ranks, "wrong", more);
    const std::vector<int> statuses = processes->wait(60);
    for (const int status : statuses) EXPECT_EQ(78, status);
    const std::vector<std::string> messages = processes->messages();
    EXPECT_EQ(1u, messages.size());
    return messages.empty() ? "" : messages[0];
  };
  EXPECT_NE(std::string::npos, said(3, {}).find("the 4 leaves of a batch cannot be shared by 3 ranks"));
  EXPECT_NE(std::string::npos, said(2, {"train.leaves=0", "train.batch_size=9", "train.micro_batch_size=0"})
                                   .find("does not divide into 2 leaves"));
}

}  // namespace
}  // namespace mmfree
