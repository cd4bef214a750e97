// train.trace_steps: trace.json tells what a step did when, and the run stays as it would be without it.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/training.h"
#include "train/run/checkpoint.h"
#include "train/run/step_trace.h"

namespace mmfree {
namespace {

using Json = nlohmann::json;

struct Span {
  std::string name, kind;
  double begin = 0, end = 0;
};

/// The complete events of a trace, outer ones before inner ones.
std::vector<Span> spans_of(const std::string& text) {
  const Json trace = Json::parse(text);
  std::vector<Span> spans;
  for (const Json& e : trace.at("traceEvents")) {
    if (e.at("ph") == "M") continue;
    EXPECT_EQ(e.at("ph"), "X");
    const double begin = e.at("ts"), duration = e.at("dur");
    EXPECT_GE(begin, 0);
    EXPECT_GE(duration, 0);
    spans.push_back({e.at("name"), e.at("cat"), begin, begin + duration});
  }
  return spans;
}

/// Each span, in the order of their begins, lies inside the one around it and behind the one before it. Returns the
/// path of each: "step 3/update/adamw".
std::vector<std::string> paths_of(const std::vector<Span>& spans) {
  constexpr double kSlack = 1e-3;  // microseconds: a nanosecond, in which times are given
  std::vector<Span> around;
  std::vector<std::string> paths;
  double last = 0;
  for (const Span& s : spans) {
    EXPECT_GE(s.begin, last - kSlack);
    last = s.begin;
    for (; !around.empty() && (around.back().kind == "op" || s.end > around.back().end + kSlack); around.pop_back())
      EXPECT_GE(s.begin, around.back().end - kSlack) << s.name << " overlaps " << around.back().name;
    std::string path;
    for (const Span& a : around) path += a.name + "/";
    paths.push_back(path + s.name);
    around.push_back(s);
  }
  // Ops do not overlap: one device computes them one by one.
  double free = 0;
  for (const Span& s : spans)
    if (s.kind == "op") {
      EXPECT_GE(s.begin, free - kSlack) << s.name;
      free = s.end;
    }
  return paths;
}

RunConfig traced_run(const std::string& run_dir) {
  RunConfig c = tiny_run(run_dir);
  c.train.steps = 7;
  c.train.micro_batch_size = 1;
  return c;
}

TEST(Trace, TellsTheOpsOfTheStepsAskedFor) {
  const TempDir dir;
  RunConfig c = traced_run(dir / "traced");
  c.train.trace_steps = {{3, 4}, {6, 6}, {100, 200}};
  train(c);
  const std::vector<std::string> paths = paths_of(spans_of(slurp(dir / "traced/trace.json")));
  const auto count = [&](const std::string& path) { return std::count(paths.begin(), paths.end(), path); };
  for (const int step : {1, 2, 3, 4, 5, 6, 7}) {
    const bool traced = step == 3 || step == 4 || step == 6;
    const std::string name = concat("step ", step);
    EXPECT_EQ(count(name), traced) << name;
    EXPECT_EQ(count(name + "/first micro-batch"), traced);
    EXPECT_EQ(count(name + "/later micro-batch"), 3 * traced);
    EXPECT_EQ(count(name + "/later micro-batch/forward"), 3 * traced);
    EXPECT_EQ(count(name + "/later micro-batch/backward"), 3 * traced);
    EXPECT_EQ(count(name + "/update/adamw"), traced);
    // Per layer i, f, g, o, gate-up and down; and the head.
    EXPECT_EQ(count(name + "/first micro-batch/forward/ternary_linear int8"), (2 * 6 + 1) * traced);
  }
  const std::string text = slurp(dir / "traced/trace.json");
  EXPECT_TRUE(contains(text, "\"operations\":")) << "of products";
  EXPECT_TRUE(contains(text, "\"bytes\":")) << "of passes";
}

TEST(Trace, LeavesTheRunAsItWouldBe) {
  const TempDir dir;
  RunConfig c = traced_run(dir / "plain");
  const RunResult plain = train(c);
  EXPECT_FALSE(std::filesystem::exists(dir / "plain/trace.json"));
  c.train.run_dir = dir / "traced";
  c.train.trace_steps = {{1, 7}};
  const RunResult traced = train(c);
  EXPECT_EQ(plain.last_loss, traced.last_loss);
  EXPECT_EQ(learned(checkpoint_path(dir / "plain", 7)), learned(checkpoint_path(dir / "traced", 7)));
  EXPECT_EQ(op_watch, nullptr);
}

TEST(Trace, ThatCannotBeWrittenOnlyWarns) {
  const TempDir dir;
  RunConfig c = traced_run(dir / "run");
  c.train.trace_steps = {{2, 2}};
  std::filesystem::create_directories(dir / "run/trace.json/full");
  std::string said;
  EXPECT_NO_THROW(said = text_of([&] { train(c); }));
  EXPECT_TRUE(contains(said, "warning: the trace of steps could not be written: ")) << said;
}

TEST(Trace, HasAnEndAndForgetsStepsThatFail) {
  const TempDir dir;
  StepTrace trace(Device::cpu, "here");
  const auto parts = [](size_t n) {
    for (size_t i = 0; i < n; ++i) const WatchedRange range("part");
    return true;
  };
  EXPECT_TRUE(trace.of(1, [&] { return parts(2); }));
  EXPECT_EQ(trace.size(), 3u);
  EXPECT_EQ(trace.write(dir / "a.json"), "");
  trace.of(2, [&] { return parts(StepTrace::kMostEvents); });
  EXPECT_EQ(trace.size(), 3u) << "a whole step or nothing of it";
  EXPECT_THROW(trace.of(3,
                        [&]() -> bool {
                          const WatchedRange range("part");
                          throw Error("no");
                        }),
               Error);
  EXPECT_EQ(trace.size(), 3u);
  EXPECT_EQ(op_watch, nullptr);
  EXPECT_TRUE(contains(trace.write(dir / "b.json"), "1 traced steps are left out"));
  EXPECT_EQ(slurp(dir / "a.json"), slurp(dir / "b.json"));
  EXPECT_EQ(paths_of(spans_of(slurp(dir / "a.json"))),
            (std::vector<std::string>{"step 1", "step 1/part", "step 1/part"}));
}

TEST(Trace, IsAskedForByStepsAndRanges) {
  const auto steps = [](const std::string& value) {
    return load_config_text("train: {trace_steps: " + value + "}", "x.yaml").train.trace_steps;
  };
  EXPECT_EQ(steps("5"), (std::vector<StepRange>{{5, 5}}));
  EXPECT_EQ(steps("10..12"), (std::vector<StepRange>{{10, 12}}));
  EXPECT_EQ(steps("[3, 10..12]"), (std::vector<StepRange>{{3, 3}, {10, 12}}));
  EXPECT_TRUE(steps("[]").empty());
  RunConfig c;
  c.train.trace_steps = {{3, 3}, {10, 12}};
  EXPECT_EQ(load_config_text(to_yaml(c), "x.yaml").train.trace_steps, c.train.trace_steps);
  for (const int64_t step : {3, 10, 11, 12}) EXPECT_TRUE(c.train.traces(step)) << step;
  for (const int64_t step : {2, 4, 9, 13}) EXPECT_FALSE(c.train.traces(step)) << step;
  for (const char* bad : {"0", "-1", "3..2", "..", "3..", "..3", "1...2", "1..2..3", "a", "1.5", "true", "{a: 1}"})
    EXPECT_TRUE(
        contains(error_of<ConfigError>([&] { steps(bad); }), "expected step or range of steps such as 10..12, found"))
        << bad;
}

}  // namespace
}  // namespace mmfree
