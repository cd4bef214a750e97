// Alarms: each rings for its cause and once, says which matrix and the figure, and a run that goes on knows them.
#include "layers/parameters.h"
#include "tests/support/training.h"
#include "train/run/alarms.h"

namespace mmfree {
namespace {

/// Lines of telemetry of a small model, with figures that are changed one by one.
class AlarmsTest : public testing::Test {
 protected:
  AlarmsTest() {
    config_.model.num_hidden_layers = 2;
    config_.model.vocab_size = 64;
    config_.optim.schedule = Schedule::constant;
    config_.optim.warmup_steps = 0;
    config_.train.telemetry_every = 50;
    store_ = std::make_unique<ParamStore>(parameter_specs(config_.model), DType::f32);
    store_->initialise(1);
    lm_ = std::make_unique<LM>(*store_, config_.model);
    begin();
  }
  void begin() {
    matrices_ = watched_matrices(*lm_, *store_, config_.optim);
    alarms_.emplace(config_, matrices_);
  }
  std::vector<std::string> line(int64_t step, const std::map<std::string, double>& changed = {}) {
    Metrics metrics = {{"step", step}};
    for (const WatchedMatrix& m : matrices_)
      for (const auto& [key, value] : {std::pair<std::string, double>{"ternary/" + m.name + "/scale", 0.02},
                                       {"ternary/" + m.name + "/flips", 0.001},
                                       {"ternary/" + m.name + "/grad_norm", 0.5},
                                       {"act/" + m.name + "/saturation", 0.01}})
        metrics.emplace_back(key, changed.contains(key) ? changed.at(key) : value);
    for (const auto& [key, value] : changed)
      if (key.ends_with("dead_rows")) metrics.emplace_back(key, value);
    lines_ += metrics_line(metrics) + "\n";
    return alarms_->judge(metrics);
  }
  /// The only text, which must hold these parts.
  static void expect_one(const std::vector<std::string>& texts, const std::vector<std::string>& parts) {
    ASSERT_EQ(1u, texts.size());
    for (const std::string& part : parts) EXPECT_TRUE(contains(texts[0], part)) << texts[0] << " lacks " << part;
    for (const char c : texts[0]) EXPECT_TRUE(c >= ' ' && c <= '~' && c != '"' && c != '\\') << texts[0];
  }
  const std::vector<std::string> nothing_;
  const std::string name_ = "layers.1.mlp.down_proj", key_ = "ternary/" + name_ + "/";
  RunConfig config_;
  std::unique_ptr<ParamStore> store_;
  std::unique_ptr<LM> lm_;
  std::vector<WatchedMatrix> matrices_;
  std::optional<Alarms> alarms_;
  std::string lines_;
};

TEST_F(AlarmsTest, NothingRingsInARunThatIsWell) {
  for (int64_t step = 50; step < 2000; step += 50) EXPECT_EQ(nothing_, line(step));
}

TEST_F(AlarmsTest, DeadRowsRingOnceAndAgainWhenTheyDouble) {
  EXPECT_EQ(nothing_, line(50));
  expect_one(line(100, {{key_ + "dead_rows", 3}}), {name_ + ": 3 of 256 rows", "optim.lr"});
  EXPECT_EQ(nothing_, line(150, {{key_ + "dead_rows", 5}}));
  expect_one(line(200, {{key_ + "dead_rows", 6}}), {"6 of 256"});
  EXPECT_EQ(nothing_, line(250));
  expect_one(line(300, {{key_ + "dead_rows", 1}}), {"1 of 256"});
}

TEST_F(AlarmsTest, AScaleThatCollapsesRingsOnce) {
  EXPECT_EQ(nothing_, line(50));
  EXPECT_EQ(nothing_, line(100, {{key_ + "scale", 0.0021}}));
  expect_one(line(150, {{key_ + "scale", 0.0019}}), {name_, "from 0.02 in step 50 to 0.0019", "optim.weight_decay"});
  EXPECT_EQ(nothing_, line(200, {{key_ + "scale", 0.0022}}));
  EXPECT_EQ(nothing_, line(250, {{key_ + "scale", 0.0018}})) << "it did not recover meanwhile";
  EXPECT_EQ(nothing_, line(300));
  expect_one(line(350, {{key_ + "scale", 0.001}}), {"0.001"});
}

TEST_F(AlarmsTest, CodesThatStandStillRingAfterThreeLinesAndAHundredSteps) {
  EXPECT_EQ(nothing_, line(50));
  EXPECT_EQ(nothing_, line(100, {{key_ + "flips", 0}}));
  EXPECT_EQ(nothing_, line(150, {{key_ + "flips", 0}}));
  expect_one(line(200, {{key_ + "flips", 0}, {key_ + "grad_norm", 1e-9}}), {name_, "last 150 steps", "1e-09"});
  EXPECT_EQ(nothing_, line(250, {{key_ + "flips", 0}}));
  EXPECT_EQ(nothing_, line(300));
  for (int64_t step = 301; step < 400; ++step) EXPECT_EQ(nothing_, line(step, {{key_ + "flips", 0}})) << step;
  expect_one(line(400, {{key_ + "flips", 0}}), {"last 100 steps"});
}

TEST_F(AlarmsTest, CodesMayStandStillWhereTheRateIsSmallOrZero) {
  config_.optim.schedule = Schedule::linear;
  config_.optim.min_lr_ratio = 0;
  for (int64_t step = 995; step <= 1000; ++step) EXPECT_EQ(nothing_, line(step, {{key_ + "flips", 0}}));
  config_.optim.schedule = Schedule::constant;
  config_.optim.rules = {{{}, {"down_proj.weight"}, 0.0, {}}};
  begin();
  for (int64_t step = 50; step < 1000; step += 50) EXPECT_EQ(nothing_, line(step, {{key_ + "flips", 0}}));
}

TEST_F(AlarmsTest, ASaturatedInputRingsAndAFewCodesOfANarrowOneDoNot) {
  const std::string act = "act/" + name_ + "/saturation";
  EXPECT_EQ(nothing_, line(50));
  expect_one(line(100, {{act, 0.12}}), {name_, "12% of the codes"});
  EXPECT_EQ(nothing_, line(150, {{act, 0.12}}));
  EXPECT_EQ(nothing_, line(200, {{act, 0.04}}));
  EXPECT_EQ(nothing_, line(250, {{act, 0.06}}));
  begin();
  for (WatchedMatrix& m : matrices_) m.cols = 30;
  EXPECT_EQ(nothing_, line(50, {{act, 0.12}})) << "less than four codes of a row";
}

TEST_F(AlarmsTest, SeveralMatricesAreOneLine) {
  std::map<std::string, double> changed;
  for (const WatchedMatrix& m : matrices_) changed["ternary/" + m.name + "/dead_rows"] = 1;
  expect_one(line(50, changed), {"layers.0.attn.", concat("(so it is with ", matrices_.size() - 1, " more)")});
}

TEST_F(AlarmsTest, ARunThatGoesOnKnowsWhatWasSaid) {
  const TempDir dir;
  std::map<std::string, double> still = {{key_ + "flips", 0}, {key_ + "dead_rows", 2}};
  for (int64_t step = 50; step <= 100; step += 50) line(step, still);
  spit(dir / "metrics.jsonl", lines_ + "{\"step\": 100, \"alarm\": \"x\"}\n{\"step\": 1");
  begin();
  alarms_->replay(dir / "metrics.jsonl");
  expect_one(line(150, still), {"last 150 steps"});
  begin();
  alarms_->replay("/dev/null");
  EXPECT_EQ(1u, line(150, still).size()) << "dead rows, which nobody knew";
}

TEST(RunAlarms, StandInTheMetricsAndOnTheTerminal) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.telemetry_every = 40;
  c.train.steps = 120;
  c.train.batch_size = 1;
  c.optim.lr = 1e-12;
  c.optim.schedule = Schedule::constant;
  const std::string text = text_of([&] { train(c); });
  std::vector<nlohmann::json> alarms;
  for (const nlohmann::json& row : all_metrics(dir / "run"))
    if (row.contains("alarm")) alarms.push_back(row);
  ASSERT_EQ(1u, alarms.size()) << text;
  EXPECT_EQ(120, alarms[0]["step"]);
  for (const nlohmann::json& row : alarms)
    EXPECT_TRUE(contains(text, concat("alarm: step ", int64_t(row["step"]), ": ", std::string(row["alarm"])))) << text;
}

}  // namespace
}  // namespace mmfree
