// Data that a run cannot train on: the dry run finds them as the run itself does, and neither leaves a folder behind.
#include <gtest/gtest.h>

#include <csignal>

#include "tests/support/program.h"
#include "tests/support/training.h"

namespace mmfree {
namespace {
namespace fs = std::filesystem;

/// A shard of the tiny corpus' tokenizer.
std::string shard_of(const TempDir& dir, const std::string& name, const std::vector<int32_t>& ids,
                     const std::function<void(ShardInfo&)>& change = {}) {
  ShardInfo info = shard_info(TinyCorpus::get().tokenizer(), "train");
  if (change) change(info);
  ShardWriter shard(dir / name, info, "test");
  shard.add(ids);
  shard.commit();
  return dir / name;
}

/// `n` tokens, of which the first is no token of the vocabulary if `bad`.
std::vector<int32_t> tokens(size_t n, bool bad = false) {
  std::vector<int32_t> ids(n);
  for (size_t i = 0; i < n; ++i) ids[i] = 10 + int32_t(i % 7);
  if (bad) ids[0] = 400;
  return ids;
}

class Refused : public testing::Test {
 protected:
  Refused() {
    RunConfig c = tiny_run(dir / "new/run");
    c.data.shuffle = false;
    c.train.eval_every = 3;
    c.train.sample_every = 3;
    spit(file, to_yaml(c));
  }
  std::string run_folder() const { return dir / "new/run"; }

  const TempDir dir;
  const std::string file = dir / "run.yaml";
};

TEST_F(Refused, DataAreFoundByTheDryRunAndLeaveNoFolder) {
  const std::string good = TinyCorpus::get().train();
  shard_of(dir, "damaged.h5", tokens(1000));
  std::string bytes = slurp(dir / "damaged.h5");
  spit(dir / "damaged.h5", bytes.substr(0, bytes.size() / 2));
  const auto other = [](ShardInfo& info) { info.tokenizer_hash = "0123456789abcdef"; };
  struct Case {
    std::vector<std::string> overrides;
    int status;
    std::string message;
  };
  const Case cases[] = {
      {{"data.train=" + dir / "none-*.h5"}, 66, "none-*.h5"},
      {{"data.valid=" + dir / "none"}, 66, "none"},
      {{"data.tokenizer=" + dir / "none.model"}, 66, "none.model"},
      {{"data.train=" + dir / "damaged.h5"}, 65, "damaged.h5"},
      {{"data.train=" + shard_of(dir, "few.h5", tokens(17))}, 65, "fewer than one window of 18"},
      {{"data.train=" + shard_of(dir, "bad.h5", tokens(1000, true))}, 65, "token 400 at 0 is not below"},
      {{"data.train=" + shard_of(dir, "other.h5", tokens(1000), other)}, 65, "differ in tokenizer or framing"},
      {{"data.train=" + dir / "other.h5", "data.valid=" + dir / "other.h5"}, 65, "is not the tokenizer"},
      {{"data.valid=" + shard_of(dir, "one.h5", tokens(1))}, 65, "hold 1 tokens, expected at least 2"},
      {{concat("data.eval_sets=[{name: a, shards: [\"", dir / "one.h5", "\"]}]")}, 65, "data.eval_sets 'a'"},
      {{"model.vocab_size=319"}, 78, "the training shards use 320 token ids; set model.vocab_size=320"},
      {{"data.framing=none"}, 78, "but the training shards are framed by"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.message);
    std::vector<std::string> command = {"train", file, "-q"};
    command.insert(command.end(), c.overrides.begin(), c.overrides.end());
    Program run(command);
    command.push_back("--dry-run");
    Program dry(command);
    EXPECT_EQ(c.status, run.wait());
    const bool missing = c.status == 66;  // a plan does not need data
    EXPECT_EQ(missing ? 0 : c.status, dry.wait());
    EXPECT_TRUE(contains(run.err(), c.message)) << run.err();
    if (missing) {
      const std::string told = "\ndata        not there yet: ";
      const size_t at = dry.out().find(told);
      ASSERT_NE(std::string::npos, at) << dry.out();
      EXPECT_TRUE(contains(run.err(), dry.out().substr(at + told.size()))) << run.err() << dry.out();
    } else {
      EXPECT_TRUE(contains(run.err(), dry.err())) << run.err();
      EXPECT_EQ(dry.err().find('\n'), dry.err().size() - 1) << "one line";
    }
    EXPECT_TRUE(contains(dry.out(), "\nparameters  ")) << "the plan is told all the same: " << dry.out();
    EXPECT_FALSE(fs::exists(dir / "new"));
  }
}

TEST_F(Refused, NothingIsIfTheDataFit) {
  const Corpus corpus(tiny_run("run").data);
  Program dry({"train", file, "--dry-run"});
  EXPECT_EQ(0, dry.wait()) << dry.err();
  EXPECT_TRUE(contains(dry.out(), concat(" tokens in ", corpus.documents(), " documents, ",
                                         (corpus.total_tokens() - 1) / 17, " windows of 17; ")))
      << dry.out();
  EXPECT_TRUE(contains(dry.out(), " to evaluate on; vocabulary 320\n")) << dry.out();
  EXPECT_FALSE(contains(dry.out(), "fewer than")) << dry.out();
  Program few({"train", file, "--dry-run", "data.train=" + shard_of(dir, "few.h5", tokens(3 * 17 + 1))});
  EXPECT_EQ(0, few.wait()) << few.err();
  EXPECT_TRUE(contains(few.out(), " fewer than the 4 windows of a batch: ")) << few.out();
  Program none({"train", file, "--dry-run", "~data.train", "data.tokenizer=" + dir / "none"});
  EXPECT_EQ(0, none.wait()) << none.err();
  EXPECT_TRUE(contains(none.out(), "data        not checked: ")) << none.out();
  EXPECT_FALSE(fs::exists(dir / "new"));
}

TEST_F(Refused, AFolderThatWasThereStays) {
  fs::create_directories(run_folder());
  spit(run_folder() + "/notes.txt", "mine");
  Program run({"train", file, "-q", "data.train=" + shard_of(dir, "bad.h5", tokens(1000, true))});
  EXPECT_EQ(65, run.wait());
  EXPECT_EQ("mine", slurp(run_folder() + "/notes.txt"));
  EXPECT_TRUE(fs::exists(run_folder() + "/metrics.jsonl")) << "or the run did not get as far as its folder";
  EXPECT_FALSE(fs::exists(run_folder() + "/checkpoints")) << "an empty folder that the run made";
  // It hinders no run.
  Program again({"train", file, "-q"});
  EXPECT_EQ(0, again.wait()) << again.err();
}

TEST_F(Refused, WhatOthersPutIntoANewFolderStays) {
  const RunConfig c = load_config(file, {"data.train=" + shard_of(dir, "bad.h5", tokens(1000, true))});
  const std::string said = error_of<DataError>([&] {
    Trainer trainer(c, true, false);
    EXPECT_TRUE(fs::exists(run_folder() + "/metrics.jsonl"));
    spit(run_folder() + "/notes.txt", "mine");
    trainer.run();
  });
  EXPECT_TRUE(contains(said, "token 400")) << said;
  std::vector<std::string> left;
  for (const auto& entry : fs::directory_iterator(run_folder())) left.push_back(entry.path().filename());
  EXPECT_EQ((std::vector<std::string>{"notes.txt"}), left);
}

TEST_F(Refused, ARunThatHasMadeAStepOrACheckpointKeepsItsFolder) {
  std::vector<int32_t> ids = tokens(1000);
  ids[4 * 17 + 5] = 400;
  RunConfig c = load_config(file, {"data.train=" + shard_of(dir, "later.h5", ids)});
  EXPECT_TRUE(contains(error_of<Error>([&] { train(c); }), "the 1 steps before it are saved"));
  EXPECT_EQ((std::vector<int64_t>{1}), checkpoint_steps(run_folder()));
  // One that diverges without a checkpoint.
  c = load_config(file, {"train.run_dir=" + dir / "diverged/run", "train.skip_limit=1"});
  c.optim.lr = 1e38;
  error_of<DivergedError>([&] { train(c); });
  EXPECT_FALSE(all_metrics(c.train.run_dir).empty());
  // One that a signal stops before its first step.
  c = load_config(file, {"train.run_dir=" + dir / "stopped/run"});
  {
    Trainer trainer(c, true, false);
    std::raise(SIGTERM);
    EXPECT_EQ(0, trainer.run().step);
  }
  EXPECT_EQ((std::vector<int64_t>{0}), checkpoint_steps(c.train.run_dir));
  EXPECT_TRUE(fs::exists(c.train.run_dir + "/run.json"));
}

}  // namespace
}  // namespace mmfree
