// Telemetry: its figures against plain ones, and that nothing of it changes a run.
#include "layers/parameters.h"
#include "tests/support/training.h"
#include "train/run/telemetry.h"

namespace mmfree {
namespace {
using Json = nlohmann::json;

RunConfig watched_run(const std::string& folder) {
  RunConfig c = tiny_run(folder);
  c.train.telemetry_every = 3;
  return c;
}

bool is_telemetry(const Json& row) { return row.contains("ternary/all/zeros"); }

/// The lines of telemetry, without their time.
std::vector<Json> telemetry_of(const std::string& folder) {
  std::vector<Json> rows;
  for (Json row : timeless_metrics(folder))
    if (is_telemetry(row)) rows.push_back(std::move(row));
  return rows;
}

std::map<std::string, std::string> weights_at(const std::string& folder, int64_t step) {
  return learned(checkpoint_path(folder, step));
}

TEST(Telemetry, ChangesNoBitOfARun) {
  const TempDir dir;
  std::vector<Json> lines;
  for (const int64_t every : {0, 1, 5}) {
    RunConfig c = watched_run(dir / std::to_string(every));
    c.train.telemetry_every = every;
    c.train.eval_every = 4;
    c.train.micro_batch_size = 2;
    train(c);
    EXPECT_EQ(every == 0 ? 0 : 12 / every, int64_t(telemetry_of(c.train.run_dir).size()));
    std::vector<Json> others;
    for (Json& row : timeless_metrics(c.train.run_dir))
      if (!is_telemetry(row)) others.push_back(row);
    if (lines.empty()) lines = others;
    EXPECT_EQ(lines, others) << every;
    EXPECT_EQ(weights_at(dir / "0", 12), weights_at(c.train.run_dir, 12)) << every;
  }
}

/// What the codes of a checkpoint's matrix are, computed plainly.
std::vector<int> codes_of(const Model& model, const std::string& name, double* scale) {
  const Tensor w = host_f32((*model.params)[name].value());
  double sum = 0;
  for (int64_t i = 0; i < w.size(); ++i) sum += std::abs(double(w.data<float>()[i]));
  *scale = std::max(sum / double(w.size()), 1e-5);
  std::vector<int> codes;
  for (int64_t i = 0; i < w.size(); ++i)
    codes.push_back(int(std::clamp(std::round(double(w.data<float>()[i]) / *scale), -1.0, 1.0)));
  return codes;
}

TEST(Telemetry, TellsOfTheCodesWhatTheWeightsTell) {
  const TempDir dir;
  RunConfig c = watched_run(dir / "run");
  c.train.save_every = 3;
  c.train.keep_last = 9;
  train(c);
  const std::vector<Json> lines = telemetry_of(c.train.run_dir);
  ASSERT_EQ(4u, lines.size());
  std::map<std::string, std::vector<int>> before;
  for (const Json& line : lines) {
    const Model model = load_model(checkpoint_path(c.train.run_dir, line["step"]));
    int64_t matrices = 0;
    model.lm->for_each_projection([&](const BitLinear& p) {
      ++matrices;
      double scale = 0;
      const std::vector<int> codes = codes_of(model, p.parameter, &scale);
      const std::string key = "ternary/" + (p.name.starts_with("model.") ? p.name.substr(6) : p.name) + "/";
      const auto zeros = double(std::count(codes.begin(), codes.end(), 0));
      EXPECT_NEAR(zeros / double(codes.size()), double(line.at(key + "zeros")), 1e-6) << key;
      EXPECT_NEAR(scale, double(line.at(key + "scale")), 1e-5 * scale) << key;
      if (std::vector<int>& old = before[key]; !old.empty()) {
        double flips = 0;
        for (size_t i = 0; i < codes.size(); ++i) flips += codes[i] != old[i];
        EXPECT_NEAR(flips / double(codes.size()), double(line.at(key + "flips")), 1e-6) << key;
        EXPECT_GT(flips, 0) << "a run in which nothing changes tests nothing";
      }
      before[key] = codes;
    });
    EXPECT_EQ(13, matrices);
  }
}

TEST(Telemetry, GradientNormsAddToThatOfTheStep) {
  const TempDir dir;
  RunConfig c = watched_run(dir / "run");
  ParamStore params(parameter_specs(c.model), DType::f32);
  params.initialise(1);
  LM lm(params, c.model);
  const auto optimizer = make_optimizer(params, c.optim);
  Telemetry telemetry(lm, params, *optimizer, c, lone_group());
  StepRunner runner(lm, params, *optimizer, c, Recompute::none);
  runner.ids().copy_from(random_ids(runner.ids().size(), c.model.vocab_size, 1));
  runner.targets().copy_from(random_ids(runner.targets().size(), c.model.vocab_size, 2));
  telemetry.restart(0);
  runner.launch(2, runner.ids().size());
  const StepResult result = *runner.collect();
  double squares = 0;
  for (const auto& [key, value] : telemetry.measure(3, runner.ids(), runner.starts()))
    if (key.ends_with("/grad_norm")) squares += std::pow(std::get<double>(value), 2);
  for (size_t i = 0; i < params.specs().size(); ++i) {  // what is no ternary matrix
    if (params.specs()[i].role == ParamRole::matrix || params.specs()[i].role == ParamRole::head) continue;
    const Tensor g = params.view(params.grads(), i);
    for (int64_t k = 0; k < g.size(); ++k) squares += std::pow(double(g.data<float>()[k]), 2);
  }
  EXPECT_NEAR(result.report.grad_norm, std::sqrt(squares), 1e-5 * result.report.grad_norm);
}

TEST(Telemetry, TellsOfInputsWhatTheTraceTells) {
  RunConfig c = watched_run("unused");
  ParamStore params(parameter_specs(c.model), DType::f32);
  params.initialise(1);
  LM lm(params, c.model);
  const auto optimizer = make_optimizer(params, c.optim);
  params.begin_gradients();
  Telemetry telemetry(lm, params, *optimizer, c, lone_group());
  telemetry.restart(0);
  const Tensor ids = random_ids(4 * 17, c.model.vocab_size, 1);
  std::map<std::string, double> figures;
  for (const auto& [key, value] : telemetry.measure(3, ids, {}))
    if (const double* number = std::get_if<double>(&value)) figures[key] = *number;
  LM::Trace trace;
  const QuantTensor head = lm.hidden(ids, {4}, &trace).quant();
  // The input of each block's token mixer, and the head's codes.
  for (int l = 0; l < 2; ++l) {
    double squares = 0;
    for (int64_t i = 0; i < trace[size_t(l)].size(); ++i)
      squares += std::pow(double(trace[size_t(l)].data<float>()[i]), 2);
    const double rms = std::sqrt(squares / double(trace[size_t(l)].size()) + c.model.rms_norm_eps);
    EXPECT_NEAR(rms, figures.at(concat("act/layers.", l, ".attn.i_proj/rms")), 1e-5 * rms) << l;
  }
  double most = 0, ratio = 0;
  const int64_t rows = head.values.rows(), cols = head.values.cols();
  for (int64_t n = 0; n < rows; ++n) {
    double squares = 0;
    for (int64_t k = 0; k < cols; ++k) {
      const double code = head.values.data<int8_t>()[n * cols + k];
      squares += code * code, most += std::abs(code) == 127;
    }
    ratio += 127 / std::sqrt(squares / double(cols)) / double(rows);
  }
  EXPECT_NEAR(most / double(rows * cols), figures.at("act/lm_head/saturation"), 1e-6);
  EXPECT_NEAR(ratio, figures.at("act/lm_head/absmax_over_rms"), 1e-5 * ratio);
  EXPECT_EQ(3 * 13 + 1,
            std::count_if(figures.begin(), figures.end(), [](const auto& f) { return f.first.starts_with("act/"); }));
}

TEST(Telemetry, DoesNotDependOnThreadsOrMicroBatches) {
  const TempDir dir;
  std::vector<Json> lines;
  for (const auto& [threads, micro] : {std::pair<int64_t, int64_t>{1, 0}, {3, 1}}) {
    RunConfig c = watched_run(dir / std::to_string(threads));
    c.train.threads = threads;
    c.train.micro_batch_size = micro;
    train(c);
    if (lines.empty()) lines = telemetry_of(c.train.run_dir);
    std::vector<Json> now = telemetry_of(c.train.run_dir);
    // Micro-batches add gradients in another order.
    for (size_t i = 0; i < now.size(); ++i) EXPECT_EQ(lines[i].size(), now[i].size());
    const std::string flips = "ternary/all/flips", rms = "act/layers.0.attn.i_proj/rms";
    EXPECT_NEAR(double(lines[0].at(rms)), double(now[0].at(rms)), 1e-4);
    EXPECT_NEAR(double(lines[0].at(flips)), double(now[0].at(flips)), 1e-3);
  }
  RunConfig c = watched_run(dir / "again");
  c.train.threads = 2;
  train(c);
  EXPECT_EQ(lines, telemetry_of(c.train.run_dir));
}

TEST(Telemetry, GoesOnWithoutGapsAndRepetitions) {
  const TempDir dir;
  RunConfig whole = watched_run(dir / "whole");
  train(whole);
  for (const int64_t stop : {4, 6}) {
    RunConfig c = watched_run(dir / std::to_string(stop));
    c.train.save_every = 2;
    c.train.keep_last = 9;
    train(c);
    for (int64_t later = stop + 2; later <= 12; later += 2)
      std::filesystem::remove(checkpoint_path(c.train.run_dir, later));
    c.train.resume.mode = ResumeFrom::newest;
    train(c);
    std::vector<Json> expected = telemetry_of(whole.train.run_dir);
    if (stop == 4)  // the codes of step 3 are not known any more in step 6
      for (auto it = expected[1].begin(); it != expected[1].end();)
        it = it.key().ends_with("/flips") ? expected[1].erase(it) : std::next(it);
    EXPECT_EQ(expected, telemetry_of(c.train.run_dir)) << stop;
  }
}

TEST(Telemetry, IsNotOfAModelWithoutTernaryMatrices) {
  const TempDir dir;
  RunConfig c = watched_run(dir / "run");
  c.model.precision = Precision::f32;
  train(c);
  for (const Json& row : all_metrics(c.train.run_dir))
    EXPECT_TRUE(row.contains("train/loss") || row.contains("val/loss"));
}

}  // namespace
}  // namespace mmfree
