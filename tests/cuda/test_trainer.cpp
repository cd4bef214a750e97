// Training runs on a GPU as a user makes them: cut and resumed, saved while training goes on, moved between devices.
#include <gtest/gtest.h>

#include <limits>

#include "layers/parameters.h"
#include "tests/support/gpu.h"
#include "tests/support/tiny_run.h"
#include "train/inference/score.h"
#include "train/run/trainer.h"

namespace mmfree {
namespace {

RunResult train(const RunConfig& config) { return Trainer(config, true, false).run(); }

RunConfig gpu_run(const std::string& run_dir) {
  RunConfig c = tiny_run(run_dir);
  c.train.device.kind = DeviceChoice::cuda;
  return c;
}

TEST(CudaTrainer, AResumedRunEqualsOneNeverCut) {
  MMFREE_NEEDS_GPU();
  const TempDir dir;
  RunConfig whole = gpu_run(dir / "whole");
  whole.train.eval_every = 5;
  whole.train.save_every = 4;
  whole.train.keep_last = 10;
  train(whole);
  RunConfig cut = whole;
  cut.train.run_dir = dir / "cut";
  cut.train.resume = {ResumeFrom::newest_if_any};
  for (int64_t stop : {1, 6, 7}) {
    RunConfig part = cut;
    part.train.max_time = 1e-9;  // each call does one step
    RunResult r;
    while ((r = train(part)).step < stop) EXPECT_FALSE(r.finished);
    EXPECT_EQ(r.step, stop);
  }
  EXPECT_TRUE(train(cut).finished);
  EXPECT_EQ(timeless_metrics(dir / "whole"), timeless_metrics(dir / "cut"));
  for (int64_t step : {4, 8, 12})
    EXPECT_EQ(learned(checkpoint_path(dir / "whole", step)), learned(checkpoint_path(dir / "cut", step)))
        << "step " << step;
}

/// With recorded steps, between which telemetry and texts use the memory of the steps.
TEST(CudaTrainer, TelemetryAndSamplesChangeNoBitOfARun) {
  MMFREE_NEEDS_GPU();
  const TempDir dir;
  RunConfig plain = gpu_run(dir / "plain"), watched = gpu_run(dir / "watched");
  plain.train.telemetry_every = 0;
  watched.train.telemetry_every = 2;
  watched.train.sample_every = 5;
  watched.train.sample_prompts = {"ka lo", "mi"};
  watched.train.sample_tokens = 20;
  train(plain);
  train(watched);
  std::vector<nlohmann::json> others;
  int64_t lines = 0;
  for (nlohmann::json& row : timeless_metrics(dir / "watched"))
    row.contains("ternary/all/zeros") ? void(++lines) : others.push_back(row);
  EXPECT_EQ(6, lines);
  EXPECT_EQ(timeless_metrics(dir / "plain"), others);
  EXPECT_EQ(learned(checkpoint_path(dir / "plain", 12)), learned(checkpoint_path(dir / "watched", 12)));
  const std::string texts = slurp(dir / "watched/samples.jsonl");
  EXPECT_EQ(6, std::count(texts.begin(), texts.end(), '\n'));
}

/// The same first step on both devices: counts of codes are close, since few codes lie on an edge of rounding.
TEST(CudaTrainer, TelemetryIsThatOfTheCpu) {
  MMFREE_NEEDS_GPU();
  const TempDir dir;
  std::map<std::string, double> figures[2];
  for (int i : {0, 1}) {
    RunConfig c = i ? gpu_run(dir / "gpu") : tiny_run(dir / "cpu");
    c.train.compute = ComputeChoice::f32;
    c.train.telemetry_every = 1;
    c.train.steps = 1;
    c.optim.warmup_steps = 0;
    train(c);
    for (const nlohmann::json& row : all_metrics(c.train.run_dir))
      if (row.contains("ternary/all/zeros"))
        for (const auto& [key, value] : row.items()) figures[i][key] = value;
  }
  figures[0].erase("time"), figures[1].erase("time");
  ASSERT_EQ(figures[0].size(), figures[1].size());
  for (const auto& [key, value] : figures[0])
    EXPECT_NEAR(value, figures[1].at(key), 0.02 * std::abs(value) + 0.002) << key;
}

TEST(CudaTrainer, CheckpointsMoveBetweenDevices) {
  MMFREE_NEEDS_GPU();
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.resume = {ResumeFrom::newest_if_any};
  for (const char* device : {"cpu", "cuda", "cpu"}) {
    c.train.device = *parse_device(device);
    c.train.max_time = 1e-9;
    train(c);
  }
  EXPECT_EQ(3, checkpoint_steps(dir / "run").back());
  c.train.device.kind = DeviceChoice::cuda, c.train.max_time = 0;
  const RunResult r = train(c);
  EXPECT_TRUE(r.finished);
  EXPECT_LT(r.last_loss, r.first_loss);

  // The same model on both devices: f32 differs by rounding and by flipped codes (see test_model.cpp).
  double losses[2];
  for (int i : {0, 1}) {
    const Model m = move_model(load_model(dir / "run"), choose_target(i ? "cuda" : "cpu", "f32", "test"));
    const TokenShards shards(c.data.valid);
    losses[i] = evaluate(*m.lm, TokenSource::shards(shards), {17, 0, {}}).loss();
    // The likelihoods of tasks are sums of the same numbers, from logits on the host.
    const double nats = evaluate(*m.lm, TokenSource::shards(shards), {17, 20 * 17, {}}).nats;
    std::vector<Request> windows(20, {std::vector<int32_t>(18), 17});
    for (size_t w = 0; w < windows.size(); ++w) shards.read(int64_t(w) * 17, 18, windows[w].tokens.data());
    double sum = 0;
    for (const Likelihood& window : likelihoods(*m.lm, windows)) sum -= window.logprob;
    EXPECT_NEAR(sum, nats, 1e-5 * nats);
  }
  EXPECT_NEAR(losses[0], losses[1], 2e-3 * losses[0]);
}

TEST(CudaTrainer, ABatchThatCannotBeReadLosesNoStepBeforeIt) {
  MMFREE_NEEDS_GPU();
  const TempDir dir;
  RunConfig c = gpu_run(dir / "run");
  // The last step whose samples can be numbered: the batch after it cannot be read.
  const int64_t last = std::numeric_limits<int64_t>::max() / c.train.batch_size - 1;
  c.train.steps = last + 10;
  c.optim.warmup_steps = 0;
  const Corpus corpus(c.data);
  const Batches batches(corpus, {c.data.seq_len, 1, true});
  ParamStore params(parameter_specs(c.model), DType::f32, Device::cuda);
  params.initialise(1);
  LM lm(params, c.model, DType::bf16);
  const auto optimizer = make_optimizer(params, c.optim);
  StepRunner runner(lm, params, *optimizer, c, Recompute::none);
  BatchFeed feed(batches, (last - 1) * c.train.batch_size, c.train.steps, c.train.batch_size, c.data.seq_len, true);
  EXPECT_FALSE(runner.run(last - 1, feed));
  EXPECT_EQ(last, runner.run(last, feed)->step);
  EXPECT_THROW(runner.run(last + 1, feed), Error);
  EXPECT_EQ(last + 1, runner.collect()->step);
  EXPECT_EQ(2, optimizer->updates());
}

}  // namespace
}  // namespace mmfree
