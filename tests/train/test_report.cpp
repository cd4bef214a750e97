// Reports: what is read of a run folder, how curves are thinned, and that the page holds it, whatever it says.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "tests/support/program.h"
#include "tests/support/training.h"
#include "train/watch/decimate.h"
#include "train/watch/report.h"
#include "train/watch/run_metrics.h"

namespace mmfree {
namespace {
namespace fs = std::filesystem;
using Json = nlohmann::json;

RunMetrics metrics_of(const TempDir& dir, const std::string& lines) {
  RunMetrics metrics(spit(dir / "m.jsonl", lines));
  metrics.read();
  return metrics;
}

TEST(RunMetrics, GivesEachKeyItsValuesAndEachRowItsPlaces) {
  const TempDir dir;
  const RunMetrics m =
      metrics_of(dir,
                 "{\"step\": 0, \"val/loss\": 9, \"time\": 100}\n"
                 "{\"step\": 2, \"a\": 1, \"train/tokens\": 20, \"train/step_time_ms\": 500, \"time\": 101}\n"
                 "{\"step\": 4, \"a\": null, \"train/tokens\": 40, \"train/step_time_ms\": 1000, \"time\": 900}\n"
                 "{\"step\": 4, \"val/loss\": 8, \"a\": 3, \"a\": 5, \"time\": 901}\n");
  EXPECT_EQ(m.steps(), (std::vector<int64_t>{0, 2, 4, 4}));
  EXPECT_EQ(m.tokens(), (std::vector<double>{0, 20, 40, 40}));
  EXPECT_EQ(m.seconds(), (std::vector<double>{0, 1, 3, 3})) << "the pause of a resumed run is no training";
  EXPECT_EQ(m.first_time(), 100);
  EXPECT_EQ(m.last_time(), 901);
  ASSERT_TRUE(m.find("a"));
  EXPECT_EQ(m.find("a")->values, (std::vector<double>{1, 3}));
  EXPECT_EQ(m.find("a")->rows, (std::vector<uint32_t>{1, 3}));
  EXPECT_EQ(m.find("val/loss")->rows, (std::vector<uint32_t>{0, 3}));
  EXPECT_FALSE(m.find("step"));
  EXPECT_FALSE(m.find("b"));
}

TEST(RunMetrics, WithoutTimesOfStepsTheClockCounts) {
  const TempDir dir;
  const RunMetrics m = metrics_of(dir, "{\"step\": 1, \"time\": 50}\n{\"step\": 2, \"time\": 57}\n{\"step\": 3}\n");
  EXPECT_EQ(m.seconds(), (std::vector<double>{0, 7, 7}));
}

TEST(RunMetrics, LeavesOutWhatIsNoMetrics) {
  const TempDir dir;
  std::string many = "{\"step\": 5";
  for (int k = 0; k < 9000; ++k) many += concat(", \"k", k, "\": 1");
  const RunMetrics m = metrics_of(
      dir, "\n{}\n{\"step\": -1, \"a\": 1}\n{\"step\": \"x\", \"a\": 1}\nnull\n{\"step\": 1, \"a\": [1]}\n" + many +
               "}\n{\"step\": 6, \"\xff\": 1, \"" + std::string(300, 'n') + "\": 1, \"k3\": 7}\n{\"step\": 7");
  EXPECT_EQ(m.damaged_lines(), 6);
  EXPECT_EQ(m.steps(), (std::vector<int64_t>{5, 6}));
  EXPECT_TRUE(m.left_out());
  EXPECT_EQ(m.series().size(), RunMetrics::kMostKeys);
  EXPECT_EQ(m.find("k3")->values, (std::vector<double>{1, 7}));
}

TEST(RunMetrics, FollowsAFileThatGrowsAndIsCutBack) {
  const TempDir dir;
  RunMetrics m(dir / "m.jsonl");
  m.read();
  EXPECT_TRUE(m.steps().empty());
  spit(dir / "m.jsonl", "{\"step\": 1, \"a\": 1}\n{\"step\": 2, \"a\"");
  m.read();
  std::ofstream(dir / "m.jsonl", std::ios::app) << ": 2}\n{\"step\": 3, \"b\": 3}\n";
  m.read();
  EXPECT_EQ(m.steps(), (std::vector<int64_t>{1, 2, 3}));
  spit(dir / "m.jsonl", "{\"step\": 1, \"a\": 4}\n");
  m.read();
  EXPECT_EQ(m.steps(), (std::vector<int64_t>{1}));
  EXPECT_EQ(m.find("a")->values, (std::vector<double>{4}));
  EXPECT_FALSE(m.find("b"));
}

TEST(Decimate, EveryValueIsInOneBucketWithItsBounds) {
  std::mt19937 random(4);
  for (const size_t n : {0, 1, 2, 7, 999, 1000, 1001, 54321})
    for (const size_t buckets : {1, 3, 1000}) {
      std::vector<double> values(n);
      for (double& v : values) v = double(random()) - 2e9;
      const std::vector<Bucket> made = decimate(values, buckets);
      ASSERT_EQ(made.size(), std::min(n, buckets));
      size_t at = 0;
      for (const Bucket& b : made) {
        ASSERT_EQ(b.begin, at);
        ASSERT_LT(b.begin, b.end);
        const auto [least, greatest] =
            std::minmax_element(values.begin() + long(b.begin), values.begin() + long(b.end));
        ASSERT_EQ(b.least, *least);
        ASSERT_EQ(b.greatest, *greatest);
        ASSERT_GE(b.mean, *least - 1e-6 * std::fabs(*least));  // a rounded mean of equal values may lie beside them
        ASSERT_LE(b.mean, *greatest + 1e-6 * std::fabs(*greatest));
        ASSERT_LE(b.end - b.begin, n / made.size() + 1);
        at = b.end;
      }
      ASSERT_EQ(at, n);
    }
}

/// A run folder with `lines` of metrics.
RunData made_run(const TempDir& dir, const std::string& name, const std::string& lines) {
  fs::create_directories(dir / name);
  spit(dir / (name + "/metrics.jsonl"), lines);
  return read_run(dir / name);
}

std::string page_of(std::vector<RunData> runs, const ReportOptions& options = {}) {
  name_apart(runs);
  return report_page(runs, options);
}

/// The JSON inside a page.
std::string data_text(const std::string& page) {
  const std::string open = "<script type=\"application/json\" id=\"data\">";
  const size_t begin = page.find(open) + open.size();
  EXPECT_NE(page.find(open), page.npos);
  return page.substr(begin, page.find("</script>", begin) - begin);
}

std::vector<RunData> list_of(RunData a) {
  std::vector<RunData> runs;
  runs.push_back(std::move(a));
  return runs;
}

TEST(Report, HoldsTheCurvesOfARun) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.eval_every = 4;
  EXPECT_TRUE(train(c).finished);
  spit(dir / "run/eval.json",
       "{\"model\": \"m\", \"loss\": 2.5, \"tasks\": {\"piqa\": {\"acc\": 0.5}}, \"positions\": [1]}");
  spit(dir / "run/samples.jsonl",
       "{\"step\": 3, \"prompt\": \"a\", \"text\": \"b\"}\nbroken\n{\"step\": 4, \"text\": 1}\n");
  const std::string page = page_of(list_of(read_run(dir / "run")), {"A & <title>", 2.5});
  EXPECT_TRUE(page.starts_with("<!doctype html>\n"));
  EXPECT_TRUE(contains(page, "<title>A &amp; &lt;title&gt;</title>"));
  const Json data = Json::parse(data_text(page));
  const Json& run = data["runs"][0];
  EXPECT_EQ(data["price"], 2.5);
  EXPECT_EQ(run["name"], "run");
  EXPECT_EQ(run["steps"], 12);
  EXPECT_EQ(run["tokens"], 12 * 4 * 17);
  EXPECT_NEAR(run["flops_per_token"].get<double>(), training_flops(c.model, 17), 1e-6 * training_flops(c.model, 17));
  std::map<std::string, std::vector<double>> expected;
  std::vector<double> steps;
  for (const Json& row : all_metrics(dir / "run"))
    for (const auto& [key, value] : row.items()) {
      if (value.is_number()) expected[key].push_back(value);
      if (key == "train/loss") steps.push_back(row["step"]);
    }
  for (const char* key : {"train/loss", "train/grad_norm", "val/loss", "train/step_time_ms"}) {
    const Json& series = run["series"][key];
    EXPECT_EQ(series["count"], expected[key].size());
    ASSERT_EQ(series["mean"].size(), expected[key].size());
    for (size_t i = 0; i < expected[key].size(); ++i)
      EXPECT_NEAR(series["mean"][i].get<double>(), expected[key][i], 1e-6 * std::fabs(expected[key][i]));
    EXPECT_FALSE(series.contains("lo")) << "no value was left out";
  }
  EXPECT_EQ(run["grids"][run["series"]["train/loss"]["grid"].get<size_t>()]["step"].get<std::vector<double>>(), steps);
  EXPECT_FALSE(run["series"].contains("train/mfu"));
  EXPECT_EQ(run["evaluations"][0]["numbers"]["tasks/piqa/acc"], 0.5);
  EXPECT_EQ(run["samples"], Json::parse("[{\"step\": 3, \"prompt\": \"a\", \"text\": \"b\"}]"));
  EXPECT_EQ(run["alarms"], Json::array());
  EXPECT_EQ(run["notes"].size(), 1u) << run["notes"];
  EXPECT_TRUE(contains(run["config"], "hidden_size"));
}

TEST(Report, HoldsTheLaterAlarms) {
  const TempDir dir;
  std::string lines = "{\"step\": 1, \"alarm\": \"</script>\"}\n{\"step\": 2, \"alarm\": 3}\n";
  for (int step = 3; step < 400; ++step)
    lines += concat("{\"step\": ", step, ", \"alarm\": \"a", step, "\", \"b\": 1}\n");
  const std::string page = page_of(list_of(made_run(dir, "x", lines)));
  const Json alarms = Json::parse(data_text(page))["runs"][0]["alarms"];
  ASSERT_EQ(alarms.size(), RunMetrics::kMostAlarms);
  EXPECT_EQ(alarms.back(), Json::parse("{\"step\": 399, \"text\": \"a399\"}"));
  const Json first = Json::parse(data_text(page_of(list_of(made_run(dir, "y", lines.substr(0, 70))))))["runs"][0];
  EXPECT_EQ(first["alarms"], Json::parse("[{\"step\": 1, \"text\": \"</script>\"}]"));
}

TEST(Report, TellsWhatDiffersBetweenConfigurations) {
  const TempDir dir;
  std::vector<RunData> runs;
  for (const int i : {0, 1, 2}) {
    RunConfig c = tiny_run(dir / concat("r", i));
    c.optim.lr = i == 2 ? 0.5 : 0.25;
    c.train.seed = i;
    fs::create_directories(c.train.run_dir);
    if (i != 1) spit(c.train.run_dir + "/config.resolved.yaml", to_yaml(c));
    runs.push_back(made_run(dir, concat("r", i), "{\"step\": 1, \"a\": 1}\n"));
  }
  const Json data = Json::parse(data_text(page_of(std::move(runs))));
  EXPECT_EQ(data["differences"], Json::parse(R"([["optim.lr", "0.25", "", "0.5"], ["train.seed", "0", "", "2"]])"));
}

TEST(Report, TellsWhichRunsHaveOneVocabulary) {
  const TempDir dir;
  struct Case {
    const char* tokenizer;  // "": an older run, which does not tell
    int64_t vocab_size;     // 0: no configuration
    int number;
  };
  std::vector<RunData> runs;
  std::vector<int> expected;
  for (const Case& c : {Case{"aa", 300, 0}, {"bb", 300, 1}, {"aa", 320, 0}, {"", 300, 0}, {"", 500, 2}, {"", 0, 0}}) {
    const std::string name = concat("r", runs.size());
    fs::create_directories(dir / name);
    spit(dir / (name + "/run.json"), *c.tokenizer ? Json({{"tokenizer", c.tokenizer}}).dump() : "{}");
    RunConfig config;
    config.model.vocab_size = c.vocab_size;
    if (c.vocab_size) spit(dir / (name + "/config.resolved.yaml"), to_yaml(config));
    runs.push_back(made_run(dir, name, "{\"step\": 1, \"val/loss\": 1}\n"));
    expected.push_back(c.number);
  }
  EXPECT_EQ(expected, vocabularies(runs));
  const Json data = Json::parse(data_text(page_of(std::move(runs))));
  EXPECT_EQ(1, data["runs"][1]["vocabulary"].get<int>());
}

TEST(Report, AndTopSayWhatIsNoRunAndWhatIsExpected) {
  const TempDir dir;
  fs::create_directories(dir / "runs/empty");
  const std::string expected =
      "expected the folder of a run (its train.run_dir), in which `mmfree train` writes metrics.jsonl";
  spit(dir / "file", "text");
  const std::string runs = dir / "runs", file = dir / "file", none = dir / "none";
  std::vector<std::pair<std::string, std::string>> cases = {
      {none, none + ": there is no such folder; " + expected},
      {file, file + ": is no folder; " + expected},
      {runs + "/empty/", runs + "/empty: holds no metrics.jsonl; " + expected}};
  const auto check = [&](const std::string& path, const std::string& message) {
    for (const std::vector<std::string>& command :
         {std::vector<std::string>{"top", path}, {"report", path, "-o", dir / "page.html"}}) {
      Program p(command);
      EXPECT_EQ(66, p.wait());
      EXPECT_EQ("mmfree: " + message + "\n", p.err());
      EXPECT_EQ("", p.out());
    }
    EXPECT_FALSE(fs::exists(dir / "page.html"));
  };
  for (const auto& [path, message] : cases) check(path, message);
  for (const char* name : {"b", "a"}) made_run(dir, concat("runs/", name), "{\"step\": 1}\n");
  check(runs,
        runs + ": holds no metrics.jsonl; " + expected + "; there are 2 runs in it, name " + runs + "/a and others");
}

TEST(Report, TextOfARunIsNoPartOfThePage) {
  const TempDir dir;
  const std::string evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>&\"'\\u2028";
  RunData run = made_run(dir, "x", "{\"step\": 1, \"</script><b>\": 1, \"train/loss\": 2}\n");
  spit(dir / "x/run.json", Json({{evil, evil}, {"deep", Json::parse("[[{\"a\": []}]]")}}).dump());
  spit(dir / "x/samples.jsonl", Json({{"step", 1}, {"prompt", evil}, {"text", evil + "\xe2\x80\xa8"}}).dump() + "\n");
  spit(dir / "x/<script>.json", Json({{"model", evil}, {"loss", 1}, {evil, 2}}).dump());
  spit(dir / "x/config.resolved.yaml", evil + "\xff: [");
  run = read_run(dir / "x");
  run.path = run.path + evil;
  const std::string page = page_of(list_of(std::move(run)), {evil, 0});
  const std::string text = data_text(page);
  EXPECT_EQ(text.find_first_of("<>&"), text.npos);
  EXPECT_TRUE(std::all_of(text.begin(), text.end(), [](char c) { return c >= ' ' && c <= '~'; }));
  const Json data = Json::parse(text);
  EXPECT_EQ(data["runs"][0]["samples"][0]["prompt"], evil);
  EXPECT_EQ(data["title"], evil);
  EXPECT_TRUE(data["runs"][0]["series"].contains("</script><b>"));
  const auto count = [&](const std::string& part) {
    size_t n = 0;
    for (size_t at = 0; (at = page.find(part, at)) != page.npos; ++at) ++n;
    return n;
  };
  EXPECT_EQ(count("<script"), 2u);
  EXPECT_EQ(count("</script>"), 2u);
}

TEST(Report, FilesThatAreNoneOfItsOwnAreNoted) {
  const TempDir dir;
  made_run(dir, "x", "{\"step\": 1, \"a\": 1}\n");
  spit(dir / "x/run.json", "{\"a\": " + std::string(1 << 20, '['));
  spit(dir / "x/eval.json", std::string(1 << 20, '{'));
  spit(dir / "x/config.resolved.yaml", "model: {vocab_size: 5, surprise: 1}");
  fs::create_directory(dir / "x/samples.jsonl");
  const RunData run = read_run(dir / "x");
  EXPECT_EQ(run.notes.size(), 4u);
  EXPECT_FALSE(run.config);
  EXPECT_TRUE(run.facts.empty());
  EXPECT_EQ(flops_per_token(run), 0);
  EXPECT_THROW(read_run(dir / "x/run.json"), Error);
}

TEST(Report, AsksForNothingFromOutside) {
  const TempDir dir;
  const std::string page = page_of(list_of(made_run(dir, "x", "{\"step\": 1, \"a\": 1}\n")));
  for (const char* way : {"src=", "href", "@import", "fetch(", "XMLHttp", "https:", "import(", "innerHTML", "eval("})
    EXPECT_FALSE(contains(page, way)) << way;
  for (size_t at = 0; (at = page.find("url(", at)) != page.npos; ++at) EXPECT_EQ(page.substr(at, 5), "url(#");
  EXPECT_TRUE(contains(page, "default-src 'none'"));
}

TEST(Report, SizeIsBounded) {
  const TempDir dir;
  std::string lines;
  for (int step = 1; step <= 30000; ++step)
    lines += concat("{\"step\": ", step, ", \"a\": 0.", step, ", \"b\": ", step % 977,
                    ", \"train/tokens\": ", step * 10, "}\n");
  std::string wide = "{\"step\": 30001";
  for (int k = 0; k < 8000; ++k) wide += concat(", \"ternary/l", k, "/x\": ", k);
  std::vector<RunData> runs;
  runs.push_back(made_run(dir, "long", lines));
  const std::string page = page_of(std::move(runs));
  EXPECT_LT(page.size(), size_t(250) << 10);
  const Json data = Json::parse(data_text(page));
  const Json& b = data["runs"][0]["series"]["b"];
  EXPECT_EQ(b["mean"].size(), 1000u);
  EXPECT_EQ(b["lo"].size(), 1000u);
  EXPECT_EQ(*std::max_element(b["hi"].begin(), b["hi"].end()), 976);
  EXPECT_EQ(b["count"], 30000);
  const Json& grid = data["runs"][0]["grids"][0];
  EXPECT_EQ(grid["step"].front(), 1);
  EXPECT_EQ(grid["step"].back(), 30000);

  for (int i = 0; i < 200; ++i) lines += wide + "}\n";
  const std::string many = page_of(list_of(made_run(dir, "wide", lines)));
  EXPECT_LT(many.size(), size_t(24) << 20);
}

TEST(Report, NamesRunsApart) {
  const TempDir dir;
  std::vector<RunData> runs;
  for (const char* name : {"a/x", "b/x", "b/y"}) runs.push_back(made_run(dir, name, "{\"step\": 1}\n"));
  runs.push_back(read_run(dir / "b/y/metrics.jsonl"));
  runs.pop_back();
  name_apart(runs);
  EXPECT_EQ(runs[0].name, "a/x");
  EXPECT_EQ(runs[1].name, "b/x");
  EXPECT_EQ(runs[2].name, "b/y");
  runs.push_back(read_run(dir / "b/y/"));
  name_apart(runs);
  EXPECT_TRUE(runs[3].name.ends_with("b/y (4)")) << runs[3].name;
}

TEST(Report, TheCommandWritesThePageAndReplacesNothingElse) {
  const TempDir dir;
  made_run(dir, "run", "{\"step\": 1, \"train/loss\": 3}\nbroken\n");
  const std::string out = dir / "r.html";
  for (int twice = 0; twice < 2; ++twice) {
    Program report({"report", dir / "run", "-o", out});
    EXPECT_EQ(report.wait(), 0) << report.err();
    EXPECT_TRUE(report.out().starts_with("wrote " + out + ": 1 run, 1 points, ")) << report.out();
    EXPECT_EQ(report.err(), "warning: " + (dir / "run/metrics.jsonl") + ": 1 damaged lines left out\n");
    EXPECT_NO_THROW(verify_report(out));
  }
  spit(out, "mine");
  Program refused({"report", dir / "run", "-o", out});
  EXPECT_EQ(refused.wait(), 73) << refused.err();
  EXPECT_EQ(slurp(out), "mine");
  Program missing({"report", dir / "none", "-o", dir / "n.html"});
  EXPECT_EQ(missing.wait(), 66);
}

}  // namespace
}  // namespace mmfree
