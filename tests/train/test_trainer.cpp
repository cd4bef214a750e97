// Whole training runs: what they learn and leave behind, and that stopping, resuming and faults change nothing else.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <chrono>
#include <csignal>
#include <limits>
#include <optional>
#include <thread>

#include "optim/adamw.h"
#include "tests/support/no_locks.h"
#include "tests/support/program.h"
#include "tests/support/signal_storm.h"
#include "tests/support/training.h"

namespace mmfree {
namespace {
namespace fs = std::filesystem;

/// Changes what the checkpoint at `path` holds.
void rewrite(const std::string& path, const RunConfig& c, const std::function<void(ParamStore&, LoopState&)>& change) {
  ParamStore params(parameter_specs(c.model), DType::f32);
  AdamW optimizer(params, c.optim);
  LoopState state;
  {
    const Checkpoint file(path);
    file.load(params, &optimizer);
    state = file.state();
  }
  change(params, state);
  save_checkpoint(path, c, params, {params.values(), optimizer.states()}, state, "");
}

TEST(Trainer, LossFallsAndTheRunFolderIsComplete) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.steps = 60;
  c.train.log_every = 25;
  c.train.eval_every = 30;
  c.train.save_every = 25;
  c.train.keep_last = 2;
  const RunResult r = train(c);
  EXPECT_TRUE(r.finished);
  EXPECT_EQ(r.step, 60);
  EXPECT_NEAR(r.first_loss, std::log(323.0), 0.3);
  EXPECT_LT(r.last_loss, r.first_loss - 1);
  ASSERT_TRUE(r.valid);
  EXPECT_LT(r.valid->loss(), r.first_loss - 1);

  for (const char* name : {"config.resolved.yaml", "run.json", "tokenizer.model", "metrics.jsonl"})
    EXPECT_TRUE(fs::exists(dir / "run/" + name)) << name;
  EXPECT_EQ(slurp(dir / "run/tokenizer.model"), slurp(TinyCorpus::get().tokenizer_path()));
  RunConfig resolved = c;
  resolved.data.framing = Framing::both;
  resolved.train.leaves = 1;
  resolved.train.backward = Products::compute;
  EXPECT_TRUE(compare(load_config(dir / "run/config.resolved.yaml"), resolved).empty());
  EXPECT_EQ(nlohmann::json::parse(slurp(dir / "run/run.json"))["parameters"], c.model.parameter_count());
  EXPECT_EQ(checkpoint_steps(dir / "run"), (std::vector<int64_t>{50, 60}));

  std::vector<std::pair<int64_t, bool>> rows;
  for (nlohmann::json row : all_metrics(dir / "run")) {
    const bool training = row.contains("train/loss");
    rows.emplace_back(row["step"], training);
    const std::vector<std::string> keys =
        training ? std::vector<std::string>{"train/loss",  "train/grad_norm", "train/learning_rate",
                                            "train/epoch", "train/data_wait", "train/peak_memory"}
                 : std::vector<std::string>{"val/loss", "val/ppl", "val/bpb"};
    for (const std::string& key : keys) EXPECT_TRUE(row[key].is_number()) << key;
    EXPECT_EQ(row["train/tokens"], row["step"].get<int64_t>() * 4 * 17);
    if (training) {
      EXPECT_TRUE(row.contains("train/mfu") && row["train/mfu"].is_null()) << "no rate is known of a CPU";
      EXPECT_GT(row["train/peak_memory"].get<int64_t>(), 4 * 4 * c.model.parameter_count());
      EXPECT_GE(row["train/data_wait"].get<double>(), 0);
      continue;
    }
    EXPECT_DOUBLE_EQ(row["val/ppl"], std::exp(row["val/loss"].get<double>()));
  }
  EXPECT_EQ(rows, (std::vector<std::pair<int64_t, bool>>{
                      {0, false}, {1, true}, {25, true}, {30, false}, {50, true}, {60, true}, {60, false}}));
}

TEST(Trainer, OverfitsOneBatch) {
  for (bool shuffle : {true, false}) {
    const TempDir dir;
    RunConfig c = tiny_run(dir / "run");
    c.data.train = {random_shard(dir, 4, 17)};
    c.data.valid.clear();
    c.data.shuffle = shuffle;
    c.train.steps = 250;
    c.train.log_every = 250;
    c.optim.lr = 2e-2;
    const RunResult r = train(c);
    EXPECT_NEAR(r.first_loss, std::log(323.0), 0.3);
    EXPECT_LT(r.last_loss, 0.05) << shuffle;
    EXPECT_GT(r.last_loss, 0) << shuffle;
  }
}

TEST(Trainer, WithoutShufflingTheDataRepeatsInOrder) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.data.train = {random_shard(dir, 6, 17)};
  c.data.valid.clear();
  c.data.shuffle = false;
  c.optim.lr = 0;
  train(c);
  std::vector<double> losses;
  for (const auto& row : timeless_metrics(dir / "run")) losses.push_back(row["train/loss"]);
  ASSERT_EQ(losses.size(), 12u);
  for (size_t i = 3; i < losses.size(); ++i) EXPECT_EQ(losses[i], losses[i - 3]) << i;
  EXPECT_NE(losses[0], losses[1]);
}

TEST(Trainer, MicroBatchesAndThreadsChangeNothingThatMatters) {
  std::vector<std::vector<nlohmann::json>> rows;
  std::map<std::string, std::string> first;
  for (const auto& [micro, threads] : {std::pair{0, 1}, {0, 3}, {2, 2}, {1, 1}}) {
    const TempDir dir;
    const Threads scope(1);
    RunConfig c = tiny_run(dir / "run");
    c.train.micro_batch_size = micro;
    c.train.threads = threads;
    train(c);
    rows.push_back(timeless_metrics(dir / "run"));
    const auto bits = learned(checkpoint_path(dir / "run", 12));
    if (first.empty()) first = bits;
    EXPECT_TRUE(micro || first == bits) << threads;
  }
  EXPECT_EQ(rows[0], rows[1]);
  for (size_t i : {2, 3}) {
    ASSERT_EQ(rows[i].size(), rows[0].size());
    EXPECT_NEAR(rows[i][0]["train/loss"].get<double>(), rows[0][0]["train/loss"].get<double>(), 1e-5);
    for (size_t k = 0; k < 12; ++k) {
      EXPECT_EQ(rows[i][k]["train/tokens"], rows[0][k]["train/tokens"]);
      EXPECT_NEAR(rows[i][k]["train/loss"].get<double>(), rows[0][k]["train/loss"].get<double>(), 0.02);
    }
  }
}

TEST(Trainer, SignalsAtAnyMomentChangeNothing) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "quiet");
  c.train.steps = 20;
  c.train.threads = 1;
  train(c);
  c.train.run_dir = dir / "storm";
  {
    const SignalStorm storm;
    train(c);
    EXPECT_GT(storm.arrived(), 0);
    EXPECT_EQ(storm.elsewhere(), 0);
  }
  EXPECT_EQ(learned(checkpoint_path(dir / "storm", 20)), learned(checkpoint_path(dir / "quiet", 20)));
}

TEST(Trainer, AResumedRunEqualsOneNeverCut) {
  const TempDir dir;
  RunConfig whole = tiny_run(dir / "whole");
  whole.train.eval_every = 5;
  train(whole);
  RunConfig cut = whole;
  cut.train.run_dir = dir / "cut";
  for (int64_t stop : {1, 5, 7}) {
    RunConfig part = cut;
    part.train.resume = {ResumeFrom::newest_if_any};
    part.train.threads = stop % 3 + 1;
    part.train.max_time = 1e-9;
    // Each call does one step: max_time is over at once.
    const Threads scope(1);
    RunResult r;
    text_of([&] {
      while ((r = train(part)).step < stop) EXPECT_FALSE(r.finished);
    });
    EXPECT_EQ(r.step, stop);
    EXPECT_EQ(r.reason, "train.max_time reached");
  }
  cut.train.resume = {ResumeFrom::newest};
  const std::string said = text_of([&] { EXPECT_TRUE(train(cut).finished); });
  EXPECT_TRUE(contains(said, "resuming from")) << said;
  EXPECT_EQ(learned(checkpoint_path(dir / "whole", 12)), learned(checkpoint_path(dir / "cut", 12)));
  EXPECT_EQ(timeless_metrics(dir / "whole"), timeless_metrics(dir / "cut"));
  const Checkpoint a(checkpoint_path(dir / "whole", 12)), b(checkpoint_path(dir / "cut", 12));
  EXPECT_EQ(a.state().updates, b.state().updates);
  EXPECT_EQ(a.state().tokens, b.state().tokens);
}

TEST(Trainer, AnEvaluationThatWasCutIsMadeAgain) {
  const TempDir dir;
  RunConfig whole = tiny_run(dir / "whole");
  whole.train.steps = 4;
  whole.train.eval_every = 2;
  train(whole);
  RunConfig cut = whole;
  cut.train.run_dir = dir / "cut";
  cut.train.resume = {ResumeFrom::newest_if_any};
  {
    Trainer trainer(cut, true, false);
    std::raise(SIGTERM);
    const RunResult r = trainer.run();
    EXPECT_FALSE(r.finished);
    EXPECT_EQ(r.step, 0);
    EXPECT_EQ(r.reason, "SIGTERM");
    EXPECT_TRUE(all_metrics(dir / "cut").empty());
    EXPECT_EQ(checkpoint_steps(dir / "cut"), (std::vector<int64_t>{0}));
  }
  RunConfig part = cut;
  part.train.max_time = 1e-9;
  text_of([&] {
    for (int64_t step = 1; step <= 4; ++step) {
      const RunResult r = train(part);
      EXPECT_FALSE(r.finished) << "the evaluation at the end is cut";
      EXPECT_EQ(r.step, step);
      EXPECT_EQ(r.valid.has_value(), false);
    }
    EXPECT_EQ(all_metrics(dir / "cut").size(), 6u) << "a line per step and two evaluations";
    EXPECT_TRUE(train(cut).finished);
  });
  EXPECT_EQ(timeless_metrics(dir / "whole"), timeless_metrics(dir / "cut"));
  EXPECT_EQ(learned(checkpoint_path(dir / "whole", 4)), learned(checkpoint_path(dir / "cut", 4)));
}

/// While alive, no file may grow beyond `bytes`, as on a full disk.
class FullDisk {
 public:
  explicit FullDisk(size_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit small{bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
  }
  ~FullDisk() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  void (*handler_)(int);
  rlimit before_{};
};

TEST(Trainer, OnAFullDiskGoesOnOrStopsAsConfigured) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.steps = 3;
  train(c);
  const std::string kept = slurp(checkpoint_path(dir / "run", 3));
  c.train.steps = 8;
  c.train.resume = {ResumeFrom::newest_if_any};
  c.train.save_every = 2;
  c.train.keep_last = 1;
  for (const OnSaveError policy : {OnSaveError::carry_on, OnSaveError::stop}) {
    c.train.on_save_error = policy;
    std::string message, said;
    {
      const FullDisk full(kept.size() / 2);
      testing::internal::CaptureStderr();
      try {
        train(c);
        ADD_FAILURE() << "a run whose end was not saved is called finished";
      } catch (const Error& e) {
        EXPECT_EQ(e.status(), Exit::io);
        message = e.what();
      }
      said = testing::internal::GetCapturedStderr();
    }
    EXPECT_TRUE(contains(message, policy == OnSaveError::stop ? "step-00000004.h5" : "step-00000008.h5")) << message;
    EXPECT_TRUE(contains(message, "File too large; the newest checkpoint is " + checkpoint_path(dir / "run", 3)))
        << message;
    EXPECT_EQ(contains(said, "training goes on"), policy == OnSaveError::carry_on) << said;
    EXPECT_EQ(checkpoint_steps(dir / "run"), (std::vector<int64_t>{3}));
    EXPECT_EQ(slurp(checkpoint_path(dir / "run", 3)), kept);
  }
  text_of([&] { EXPECT_TRUE(train(c).finished); });
  RunConfig whole = tiny_run(dir / "whole");
  whole.train.steps = 3;
  train(whole);
  whole.train.steps = 8;
  whole.train.resume = {ResumeFrom::newest_if_any};
  text_of([&] { train(whole); });
  EXPECT_EQ(learned(checkpoint_path(dir / "run", 8)), learned(checkpoint_path(dir / "whole", 8)));
}

TEST(Trainer, ASaveThatFailsBesideTrainingEndsItBeforeItsLastStep) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.steps = 100000;
  c.train.on_save_error = OnSaveError::stop;
  Trainer trainer(c, true, false);
  spit(dir / "run/save", "");
  const FullDisk full(50000);
  EXPECT_TRUE(contains(error_of<Error>([&] { trainer.run(); }), "step-00000001.h5: "));
}

TEST(Trainer, ASaveThatFailedOnTheWayDoesNotSpoilTheLast) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.steps = 3;
  train(c);
  c.train.steps = 12;
  c.train.save_every = 11;
  c.train.resume = {ResumeFrom::newest_if_any};
  const std::string said = text_of([&] {
    Trainer trainer(c, true, false);
    fs::create_directories(checkpoint_path(dir / "run", 11) + "/in the way");
    EXPECT_TRUE(trainer.run().finished);
  });
  EXPECT_TRUE(contains(said, "step-00000011.h5: exists and is not a regular file")) << said;
  EXPECT_TRUE(contains(said, "the newest checkpoint is " + checkpoint_path(dir / "run", 3))) << said;
}

TEST(Trainer, NoCheckpointIsRemovedBeforeTheNewOneReadsBack) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.save_every = 4;
  train(c);
  ASSERT_EQ(checkpoint_steps(dir / "run"), (std::vector<int64_t>{4, 8, 12}));
  damage(checkpoint_path(dir / "run", 12));
  EXPECT_THROW(retain_checkpoints(dir / "run", 12, {1}), DataError);
  EXPECT_EQ(checkpoint_steps(dir / "run"), (std::vector<int64_t>{4, 8, 12}));
  retain_checkpoints(dir / "run", 8, {1});
  EXPECT_EQ(checkpoint_steps(dir / "run"), (std::vector<int64_t>{8, 12}));
}

TEST(Trainer, ResumingAFinishedRunChangesNothing) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  train(c);
  const auto rows = timeless_metrics(dir / "run");
  const std::string bytes = slurp(checkpoint_path(dir / "run", 12));
  const std::string leftover = spit(checkpoint_path(dir / "run", 11) + ".mmfree-tmp-1-0", "of a killed save");
  c.train.resume = {ResumeFrom::newest_if_any};
  text_of([&] { EXPECT_TRUE(train(c).finished); });
  EXPECT_FALSE(fs::exists(leftover));
  EXPECT_EQ(slurp(checkpoint_path(dir / "run", 12)), bytes);
  EXPECT_EQ(timeless_metrics(dir / "run"), rows);
}

TEST(Trainer, StopAndSaveFilesAreObeyedOnce) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  fs::create_directories(dir / "run");
  spit(dir / "run/stop", "");
  spit(dir / "run/save", "");
  const RunResult r = train(c);
  EXPECT_FALSE(r.finished);
  EXPECT_EQ(r.step, 1);
  EXPECT_TRUE(contains(r.reason, "stop"));
  EXPECT_FALSE(fs::exists(dir / "run/stop"));
  EXPECT_FALSE(fs::exists(dir / "run/save"));
  spit(dir / "run/save", "");
  c.train.resume = {ResumeFrom::newest};
  text_of([&] { EXPECT_TRUE(train(c).finished); });
  EXPECT_EQ(checkpoint_steps(dir / "run"), (std::vector<int64_t>{1, 2, 12}));
}

TEST(Trainer, TwoCannotTrainInOneFolderAtOnce) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.resume = {ResumeFrom::newest_if_any};
  {
    Trainer first(c, true, false);
    const std::string saving = spit(checkpoint_path(dir / "run", 5) + ".mmfree-tmp-1-0", "a save under way");
    EXPECT_TRUE(contains(error_of<CreateError>([&] { train(c); }), "another process works in this folder"));
    EXPECT_TRUE(fs::exists(saving));
  }
  EXPECT_TRUE(train(c).finished);
}

TEST(Trainer, WithoutLocksALeaseKeepsAnotherOutAndAWarningSaysSo) {
  const NoLocks none;
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.resume = {ResumeFrom::newest_if_any};
  std::optional<Trainer> first;
  const std::string said = text_of([&] { first.emplace(c, true, false); });
  EXPECT_TRUE(contains(error_of<CreateError>([&] { train(c); }), "works in this folder"));
  text_of([&] { EXPECT_TRUE(first->run().finished); });
  first.reset();
  const size_t at = said.find("warning: " + dir.path() + "/run: this file system has no locks");
  EXPECT_NE(at, said.npos) << said;
  EXPECT_EQ(said.find("has no locks", at + 60 + dir.path().size()), said.npos) << "once";
  for (const std::string& name : names_in(dir / "run")) EXPECT_FALSE(name.starts_with(".mmfree-lease")) << name;
  text_of([&] { EXPECT_TRUE(train(c).finished); });
}

/// A shard with the tokens of others; with `bad`, each so-manieth of them is no token.
std::string copy_of_tokens(const std::string& pattern, const std::string& path, size_t bad = 0) {
  const TokenShards shards({pattern});
  std::vector<int32_t> ids(size_t(shards.total_tokens()));
  shards.read(0, shards.total_tokens(), ids.data());
  for (size_t i = bad; bad && i < ids.size(); i += bad) ids[i] = 60000;
  ShardWriter writer(path, shards.info(), "made up");
  writer.add(ids);
  writer.commit();
  return path;
}

TEST(Trainer, DataThatCannotBeReadTakesNoFinishedStepAway) {
  const TempDir dir;
  RunConfig good = tiny_run(dir / "good"), bad = tiny_run(dir / "bad");
  good.data.train = {copy_of_tokens(TinyCorpus::get().train(), dir / "good.h5")};
  bad.data.train = {copy_of_tokens(TinyCorpus::get().train(), dir / "bad.h5", 300)};
  good.train.save_every = 1;
  good.train.keep_last = 100;
  bad.train.save_every = 0;
  train(good);
  const std::string said = error_of<Error>([&] { train(bad); });
  EXPECT_TRUE(contains(said, "token 60000")) << said;
  std::vector<std::string> warnings;
  const auto saved = newest_checkpoint(bad.train.run_dir, into(warnings));
  ASSERT_TRUE(saved) << "the first step met bad data already";
  const int64_t step = saved->state().step;
  EXPECT_LT(step, good.train.steps);
  EXPECT_TRUE(contains(said, concat("the ", step, " steps before it are saved"))) << said;
  EXPECT_EQ(learned(saved->path()), learned(checkpoint_path(good.train.run_dir, step)));
}

TEST(Trainer, ValidationThatCannotBeReadTakesNoFinishedStepAway) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.data.valid = {copy_of_tokens(TinyCorpus::get().valid(), dir / "valid.h5")};
  c.train.eval_every = 4;
  c.train.save_every = 0;
  fs::create_directory(dir / "run");
  spit(dir / "run/stop", "");
  text_of([&] { EXPECT_EQ(train(c).step, 1); });
  copy_of_tokens(TinyCorpus::get().valid(), dir / "valid.h5", 7);
  c.train.resume = {ResumeFrom::newest_if_any};
  for (const int64_t step : {4, 12}) {
    const std::string said = error_of<Error>([&] { train(c); });
    EXPECT_TRUE(contains(said, "token 60000")) << said;
    EXPECT_TRUE(contains(said, concat("the ", step, " steps before it are saved"))) << said;
    EXPECT_EQ(checkpoint_steps(dir / "run").back(), step);
    c.train.eval_every = 0;  // but at the end
  }
}

TEST(Trainer, AFolderThatIsRemovedIsMadeAgain) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.save_every = 4;
  text_of([&] {
    Trainer trainer(c, true, false);
    fs::remove_all(dir / "run");
    EXPECT_TRUE(trainer.run().finished);
  });
  EXPECT_NO_THROW(Checkpoint(checkpoint_path(dir / "run", 12)));
  EXPECT_EQ(timeless_metrics(dir / "run").size(), 13u) << "12 steps and an evaluation";
}

TEST(Trainer, AFolderThatAnotherRunMadeAgainIsLeftAlone) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run"), other = c;
  c.train.save_every = 4;
  other.train.seed = 2;
  Trainer first(c, true, false);
  fs::remove_all(dir / "run");
  text_of([&] { train(other); });
  const auto learned_by_other = learned(checkpoint_path(dir / "run", 12));
  const std::string metrics = slurp(dir / "run/metrics.jsonl");
  EXPECT_TRUE(contains(error_of<Error>([&] { first.run(); }), "with the checkpoints of another run"));
  EXPECT_EQ(learned(checkpoint_path(dir / "run", 12)), learned_by_other);
  EXPECT_EQ(slurp(dir / "run/metrics.jsonl"), metrics);
}

TEST(Trainer, AGoodStepEndsARowOfSkippedOnes) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.steps = 3;
  train(c);
  rewrite(checkpoint_path(dir / "run", 3), c, [](ParamStore&, LoopState& state) { state.skipped_in_row = 2; });
  c.train.steps = 4;
  c.train.resume = {ResumeFrom::newest_if_any};
  text_of([&] { train(c); });
  EXPECT_EQ(Checkpoint(checkpoint_path(dir / "run", 4)).state().skipped_in_row, 0);
}

TEST(Trainer, ParametersThatOverflowSkipUpdatesUntilTheRunGivesUp) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.steps = 3;
  train(c);
  rewrite(checkpoint_path(dir / "run", 3), c, [](ParamStore& params, LoopState&) {
    Tensor weight = params["model.layers.1.mlp.down_proj.weight"].value();
    weight.mut<float>()[5] = std::numeric_limits<float>::max();
  });
  const auto before = learned(checkpoint_path(dir / "run", 3));
  c.train.steps = 30;
  c.train.resume = {ResumeFrom::newest_if_any};
  c.train.skip_limit = 4;
  c.train.save_every = 1;
  const std::string message = error_of<DivergedError>([&] { train(c); });
  EXPECT_TRUE(contains(message, "step 7: 4 steps in a row")) << message;
  EXPECT_TRUE(contains(message, checkpoint_path(dir / "run", 6))) << message;
  // The last checkpoint before giving up: steps counted, nothing learned.
  const Checkpoint last(checkpoint_path(dir / "run", 6));
  EXPECT_EQ(last.state().step, 6);
  EXPECT_EQ(last.state().updates, 3);
  EXPECT_EQ(last.state().skipped_in_row, 3);
  auto after = learned(checkpoint_path(dir / "run", 6));
  after.erase("tokenizer");
  EXPECT_EQ(after, before);
}

TEST(Trainer, RefusesDataThatDoNotFit) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.model.vocab_size = 319;
  EXPECT_TRUE(contains(error_of<ConfigError>([&] { train(c); }), "vocab_size"));
  c = tiny_run(dir / "run");
  c.data.train = {dir / "nothing-*.h5"};
  EXPECT_TRUE(contains(error_of<MissingError>([&] { train(c); }), "nothing-*.h5"));
  c = tiny_run(dir / "run");
  c.data.seq_len = 1 << 19;
  EXPECT_TRUE(contains(error_of<DataError>([&] { train(c); }), "fewer than one window"));
  c = tiny_run(TinyCorpus::get().tokenizer_path() + "/run");
  EXPECT_TRUE(contains(error_of<CreateError>([&] { train(c); }), "cannot create the directory"));
}

/// Runs the real program for `steps` steps and a few more, then sends it a signal.
int interrupted(const std::vector<std::string>& arguments, const std::string& run_dir, int64_t steps, int signal) {
  if (const auto saved = checkpoint_steps(run_dir); !saved.empty()) steps += saved.back();
  Program program(arguments);
  while (program.running() && int64_t(timeless_metrics(run_dir).size()) < steps)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  program.signal(signal);
  const int status = program.wait();
  EXPECT_TRUE(contains(program.err(), "stopped early") || status != 75) << program.err();
  return status;
}

TEST(TrainProgram, CutBySigtermAndResumedEqualsARunNeverCut) {
  const TempDir dir;
  RunConfig c = tiny_run("");
  c.train.steps = 200;
  c.train.save_every = 60;
  c.train.telemetry_every = 0;  // flips are those that one process saw, and lines are counted as steps
  c.train.run_dir = dir / "whole";
  spit(dir / "run.yaml", to_yaml(c));
  Program whole({"train", dir / "run.yaml", "--quiet"});
  const std::string cut = dir / "cut", to = "train.run_dir=" + cut;
  EXPECT_EQ(interrupted({"train", dir / "run.yaml", to, "--quiet", "train.threads=1"}, cut, 5, SIGTERM), 75);
  const auto steps = checkpoint_steps(cut);
  ASSERT_EQ(steps.size(), 1u);
  EXPECT_GE(steps[0], 5);
  EXPECT_EQ(Checkpoint(checkpoint_path(cut, steps[0])).state().step, steps[0]);
  EXPECT_EQ(interrupted({"train", dir / "run.yaml", to, "--resume", "--quiet", "train.threads=3"}, cut, 15, SIGUSR1),
            75);
  EXPECT_EQ(interrupted({"train", dir / "run.yaml", to, "--resume=true", "--quiet"}, cut, 15, SIGINT), 75);
  // A kill that nobody can catch loses the steps since the last checkpoint and nothing else.
  EXPECT_EQ(interrupted({"train", dir / "run.yaml", to, "--resume", "--quiet"}, cut, 60, SIGKILL), 1000 + SIGKILL);
  Program rest({"train", dir / "run.yaml", to, "--resume", "--quiet"});
  EXPECT_EQ(rest.wait(), 0) << rest.err();
  EXPECT_EQ(whole.wait(), 0) << whole.err();
  EXPECT_EQ(learned(checkpoint_path(cut, 200)), learned(checkpoint_path(dir / "whole", 200)));
  EXPECT_EQ(timeless_metrics(cut), timeless_metrics(dir / "whole"));
}

TEST(TrainProgram, DivergenceEndsWithItsOwnStatus) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  ParamStore params(parameter_specs(c.model), DType::f32);
  params.initialise(1);
  Tensor norm = params["model.norm.weight"].value();
  norm.mut<float>()[3] = std::numeric_limits<float>::max();
  AdamW optimizer(params, c.optim);
  LoopState state;
  state.data = TokenShards({TinyCorpus::get().train()}).fingerprint();
  fs::create_directories(dir / "run/checkpoints");
  save_checkpoint(checkpoint_path(dir / "run", 0), c, params, {params.values(), optimizer.states()}, state, "");
  c.train.skip_limit = 2;
  c.train.steps = 200;
  spit(dir / "run.yaml", to_yaml(c));
  Program program({"train", dir / "run.yaml", "--resume"});
  EXPECT_EQ(program.wait(), 70) << program.err();
  EXPECT_TRUE(contains(program.err(), "the update was skipped (1 in a row)")) << program.err();
}

TEST(Trainer, SaysWhenLayersDifferFromTheModelsPrecision) {
  const TempDir dir;
  for (bool differ : {false, true}) {
    RunConfig c = tiny_run(dir / name_of(differ ? Precision::bf16 : Precision::ternary));
    c.train.steps = 1;
    if (differ) c.model.precision_rules = {{{0}, {}, Precision::bf16}};
    const std::string said = text_of([&] { Trainer(c, false, false).run(); });
    EXPECT_TRUE(contains(said, "vocabulary 323, ternary")) << said;
    EXPECT_EQ(contains(said, "ternary where nothing else is given\n"), differ) << said;
  }
}

}  // namespace
}  // namespace mmfree
