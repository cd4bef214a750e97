// What a run may be resumed from, and what is refused.
#include <gtest/gtest.h>

#include <csignal>
#include <fstream>

#include "core/system/folder_mark.h"
#include "tests/support/training.h"

namespace mmfree {
namespace {
namespace fs = std::filesystem;

TEST(Resume, RefusesToOverwriteARunOrToContinueNone) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.resume = {ResumeFrom::newest};
  EXPECT_TRUE(contains(error_of<MissingError>([&] { train(c); }), "found no intact checkpoint"));
  EXPECT_FALSE(fs::exists(dir / "run"));
  c.train.resume = {};
  train(c);
  EXPECT_TRUE(contains(error_of<ConfigError>([&] { train(c); }), "already holds checkpoints"));
}

TEST(Resume, ADangerousChangeNeedsForce) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.steps = 6;
  train(c);
  c.train.resume = {ResumeFrom::newest_if_any};
  c.train.steps = 7;
  c.optim.lr *= 0.5;
  text_of([&] { train(c); });  // harmless: another length and learning rate
  c.train.steps = 8;
  for (const auto& [change, key] : std::vector<std::pair<std::function<void(RunConfig&)>, std::string>>{
           {[](RunConfig& x) { x.model.gate_order = GateOrder::fixed; }, "model.gate_order"},
           {[](RunConfig& x) { x.model.hidden_size = 40; }, "model.hidden_size"},
           {[](RunConfig& x) { x.data.seq_len = 16; }, "data.seq_len"},
           {[](RunConfig& x) { x.data.shuffle = false; }, "data.shuffle"},
           {[](RunConfig& x) { x.data.reset_state = true; }, "data.reset_state"},
           {[](RunConfig& x) { x.train.batch_size = 8; }, "train.batch_size"},
           {[](RunConfig& x) { x.train.seed = 2; }, "train.seed"},
           {[](RunConfig& x) { x.train.backward = Products::int8; }, "train.backward"},
           {[](RunConfig& x) { x.data.train = {TinyCorpus::get().valid()}; }, "training shards"}}) {
    RunConfig changed = c;
    change(changed);
    EXPECT_TRUE(contains(error_of<ConfigError>([&] { train(changed); }), key)) << key;
    if (key == "model.hidden_size") continue;
    const TempDir copy;
    fs::copy(dir / "run", copy / "run", fs::copy_options::recursive);
    changed.train.run_dir = copy / "run";
    text_of([&] { EXPECT_EQ(train(changed, true).step, 8) << key; });
    changed.train.steps = 9;
    text_of([&] { EXPECT_EQ(train(changed).step, 9) << key << " was insisted on once"; });
  }
}

TEST(Resume, ACarriedStateGoesOnToTheBit) {
  const TempDir dir;
  for (int64_t micro : {0, 2}) {
    RunConfig c = tiny_run(dir / concat("run", micro));
    c.data.carry_state = true;
    c.train.micro_batch_size = micro;
    c.train.save_every = 4;
    train(c);
    const auto whole = learned(checkpoint_path(c.train.run_dir, 12));
    ASSERT_TRUE(whole.contains("state/0/0") && whole.contains("state/1/0"));
    ASSERT_EQ(whole.at("state/1/0").size(), size_t(4 * 37 * 4));
    RunConfig rest = c;
    rest.train.resume = parse_resume(checkpoint_path(c.train.run_dir, 4));
    rest.train.run_dir = dir / concat("rest", micro);
    text_of([&] { EXPECT_TRUE(train(rest).finished); });
    EXPECT_EQ(whole, learned(checkpoint_path(rest.train.run_dir, 12)));
    // The state matters: without it the same steps teach something else.
    RunConfig plain = c;
    plain.data.carry_state = false;
    plain.train.run_dir = dir / concat("plain", micro);
    train(plain);
    EXPECT_NE(whole.at("param/model.norm.weight"),
              learned(checkpoint_path(plain.train.run_dir, 12)).at("param/model.norm.weight"));
  }
}

TEST(Resume, KeepsTheBackwardProductsThatTheRunBeganWith) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.save_every = 4;
  ASSERT_FALSE(c.train.backward) << "auto";
  train(c);
  const std::string last = checkpoint_path(c.train.run_dir, 12);
  EXPECT_EQ(Products::compute, Checkpoint(last).config().train.backward);
  const auto plain = learned(last);
  RunConfig eight = c;
  eight.train.backward = Products::int8;
  eight.train.run_dir = dir / "eight";
  train(eight);
  const auto whole = learned(checkpoint_path(eight.train.run_dir, 12));
  EXPECT_NE(plain.at("param/model.norm.weight"), whole.at("param/model.norm.weight"));
  RunConfig rest = c;  // auto
  rest.train.resume = parse_resume(checkpoint_path(eight.train.run_dir, 4));
  rest.train.run_dir = dir / "rest";
  text_of([&] { EXPECT_TRUE(train(rest).finished); });
  EXPECT_EQ(whole, learned(checkpoint_path(rest.train.run_dir, 12)));
}

TEST(Resume, AStateThatWasNotSavedCannotBeCarriedOn) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.steps = 4;
  train(c);
  c.data.carry_state = true;
  c.train.steps = 5;
  c.train.resume = {ResumeFrom::newest_if_any};
  EXPECT_TRUE(contains(error_of<ConfigError>([&] { train(c); }), "data.carry_state changed"));
  const std::string said = error_of<ConfigError>([&] { train(c, true); });
  EXPECT_TRUE(contains(said, "holds no state 'state/0/0'")) << said;
  EXPECT_TRUE(fs::exists(checkpoint_path(dir / "run", 4))) << "it is not damaged";
}

TEST(Resume, SaysWhatAChangeDoesToTheOrderOfTheData) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.steps = 6;
  train(c);
  c.train.resume = {ResumeFrom::newest};
  c.train.steps = 7;
  const auto said = [&](const std::function<void(RunConfig&)>& change) {
    RunConfig changed = c;
    change(changed);
    return text_of([&] { Trainer(changed, true, true); });
  };
  EXPECT_TRUE(contains(said([](RunConfig& x) { x.train.batch_size = 8; }),
                       "step 7 goes on with sample 24, as many as were trained on; no data are repeated or left out"));
  const std::string other = said([](RunConfig& x) { x.train.seed = 2, x.data.seq_len = 8; });
  EXPECT_TRUE(contains(other,
                       "the order of the data is another one (data.seq_len, train.seed): step 7 goes on with "
                       "sample 51"))
      << other;
  EXPECT_TRUE(contains(other, "some that were seen before come again, others are left out")) << other;
  EXPECT_FALSE(contains(said([](RunConfig& x) { x.optim.lr /= 2; }), " goes on with sample"));
}

TEST(Resume, OtherTokensUnderTheSameNameNeedForce) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.data.train = {random_shard(dir, 8, 17)};
  c.train.steps = 3;
  train(c);
  random_shard(dir, 9, 17);
  c.train.steps = 4;
  c.train.resume = {ResumeFrom::newest_if_any};
  EXPECT_TRUE(contains(error_of<ConfigError>([&] { train(c); }), "the content of the training shards changed"));
  text_of([&] { EXPECT_TRUE(train(c, true).finished); });
  c.train.steps = 5;
  text_of([&] { EXPECT_TRUE(train(c).finished) << "it was insisted on once"; });
}

TEST(Resume, PassesOverADamagedCheckpointAndKeepsWhatItWritesAfterwards) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.save_every = 4;
  c.train.keep_last = 2;
  train(c);
  const auto good = learned(checkpoint_path(dir / "run", 12));
  ASSERT_EQ(checkpoint_steps(dir / "run"), (std::vector<int64_t>{8, 12}));
  damage(checkpoint_path(dir / "run", 12));
  spit(checkpoint_path(dir / "run", 11), "cut short");
  c.train.resume = {ResumeFrom::newest_if_any};
  c.train.keep_last = 1;
  RunConfig part = c;
  part.train.max_time = 1e-9;
  const std::string said = text_of([&] { EXPECT_EQ(train(part).step, 9); });
  EXPECT_TRUE(contains(said, "warning: passing over a damaged checkpoint")) << said;
  EXPECT_TRUE(contains(said, "11.h5: not an mmfree file: only 9 bytes long")) << said;
  for (const int64_t step : {11, 12})
    EXPECT_TRUE(fs::exists(fs::symlink_status(checkpoint_path(dir / "run", step) + ".damaged"))) << step;
  EXPECT_EQ(checkpoint_steps(dir / "run"), (std::vector<int64_t>{9}));
  EXPECT_TRUE(fs::exists(checkpoint_path(dir / "run", 9))) << "the only intact checkpoint is gone";
  text_of([&] { EXPECT_TRUE(train(c).finished); });
  EXPECT_EQ(learned(checkpoint_path(dir / "run", 12)), good);

  damage(checkpoint_path(dir / "run", 12));
  EXPECT_TRUE(contains(error_of<MissingError>([&] { train(c); }), "found no intact checkpoint"));
}

TEST(Resume, DamagedCheckpointsDoNotCountAsKept) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.save_every = 2;
  c.train.keep_last = 3;
  c.train.max_time = 1e-9;
  train(c);  // one step
  for (const int64_t step : {6, 7, 8}) spit(checkpoint_path(dir / "run", step), "no checkpoint");
  c.train.resume = {ResumeFrom::newest_if_any};
  c.train.max_time = 0;
  text_of([&] { EXPECT_TRUE(train(c).finished); });
  EXPECT_EQ(checkpoint_steps(dir / "run"), (std::vector<int64_t>{8, 10, 12}));
  for (const int64_t step : {8, 10, 12}) EXPECT_NO_THROW(Checkpoint(checkpoint_path(dir / "run", step))) << step;
  EXPECT_EQ(timeless_metrics(dir / "run").front()["step"], 1);
}

/// Bytes that this process has read so far.
int64_t bytes_read() {
  std::ifstream in("/proc/self/io");
  std::string key;
  int64_t value = -1;
  in >> key >> value;
  return key == "rchar:" ? value : -1;
}

TEST(Resume, ReadsACheckpointOnce) {
  if (bytes_read() < 0) GTEST_SKIP() << "the system does not count bytes read";
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.model.hidden_size = 256;
  c.train.max_time = 1e-9;
  train(c);  // one step
  const auto size = int64_t(fs::file_size(checkpoint_path(dir / "run", 1)));
  const auto read_by_start = [&] {
    const int64_t before = bytes_read();
    text_of([&] { Trainer(c, true, false); });
    return bytes_read() - before;
  };
  c.train.resume = {ResumeFrom::newest};
  const int64_t resumed = read_by_start();
  c.train.resume = {};
  c.train.run_dir = dir / "fresh";
  EXPECT_LT(resumed - read_by_start(), 11 * size / 10);
  const int64_t before = bytes_read();
  load_model(dir / "run");
  EXPECT_LT(bytes_read() - before, 11 * size / 10) << "of a model alone";
}

TEST(Resume, RefusesFewerStepsThanWereMade) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  train(c);
  c.train.resume = {ResumeFrom::newest_if_any};
  c.train.steps = 11;
  const std::string said = error_of<ConfigError>([&] { train(c); });
  EXPECT_TRUE(contains(said, "train.steps is 11 but ")) << said;
  EXPECT_TRUE(contains(said, "has made 12 steps already")) << said;
}

TEST(Resume, ANameThatIsNoCheckpointIsExplained) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.resume = parse_resume("yes");
  EXPECT_EQ(error_of<MissingError>([&] { train(c); }),
            "train.resume: no checkpoint at 'yes'; expected false, true, auto or a checkpoint's path");
}

TEST(Resume, GoingBackToAnOlderCheckpointNeedsItsOwnFolder) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.save_every = 4;
  train(c);
  c.train.resume = parse_resume(checkpoint_path(dir / "run", 4));
  EXPECT_TRUE(contains(error_of<ConfigError>([&] { train(c); }), "later checkpoints"));
  c.train.run_dir = dir / "other";
  text_of([&] { EXPECT_TRUE(train(c).finished); });
  EXPECT_EQ(learned(checkpoint_path(dir / "run", 12)), learned(checkpoint_path(dir / "other", 12)));
}

TEST(Resume, AnotherRunsCheckpointIsSavedAgainHoweverSoonTheRunStops) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.save_every = 4;
  train(c);
  c.train.resume = parse_resume(checkpoint_path(dir / "run", 4));
  c.train.run_dir = dir / "other";
  text_of([&] {
    Trainer trainer(c, true, false);
    std::raise(SIGTERM);
    const RunResult r = trainer.run();
    EXPECT_EQ(r.reason, "SIGTERM");
    EXPECT_EQ(r.step, 4);
  });
  EXPECT_EQ(checkpoint_steps(dir / "other"), (std::vector<int64_t>{4})) << "--resume would start over";
  EXPECT_EQ(learned(checkpoint_path(dir / "run", 4)), learned(checkpoint_path(dir / "other", 4)));
  EXPECT_TRUE(contains(error_of<ConfigError>([&] { train(c); }), "checkpoints of another run"));
  c.train.resume = {ResumeFrom::newest};
  text_of([&] { EXPECT_TRUE(train(c).finished); });
  EXPECT_EQ(learned(checkpoint_path(dir / "run", 12)), learned(checkpoint_path(dir / "other", 12)));
}

TEST(Resume, AnotherRunsMetricsDoNotBecomeItsOwn) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "other");
  c.train.save_every = 4;
  train(c);
  // A run that died before its first checkpoint left its metrics.
  fs::create_directory(dir / "run");
  write_mark(dir / "run", "run", {{"metrics.jsonl", kAnyContent}});
  spit(dir / "run/metrics.jsonl", "{\"step\": 1, \"foreign\": 1}\n");
  c.train.run_dir = dir / "run";
  c.train.resume = parse_resume(checkpoint_path(dir / "other", 4));
  text_of([&] { train(c); });
  const auto rows = timeless_metrics(dir / "run");
  EXPECT_EQ(rows.front()["step"], 5) << rows.front();
  // Nor do its checkpoints count as this run's, to be kept or removed.
  fs::remove(checkpoint_path(dir / "run", 12));
  fs::rename(checkpoint_path(dir / "run", 8), checkpoint_path(dir / "run", 3));
  EXPECT_TRUE(contains(error_of<ConfigError>([&] { train(c); }), "checkpoints of another run"));
}

}  // namespace
}  // namespace mmfree
