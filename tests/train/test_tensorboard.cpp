// Event files: their records, and that they tell what metrics.jsonl tells through kills, resumes and full disks.
#include <gtest/gtest.h>

#include <cmath>
#include <csignal>
#include <limits>
#include <random>

#include "tests/support/event_reader.h"
#include "tests/support/program.h"
#include "tests/support/training.h"
#include "train/watch/growing_file.h"
#include "train/watch/metrics_line.h"
#include "train/watch/tensorboard.h"

namespace mmfree {
namespace {
namespace fs = std::filesystem;

TEST(EventFile, ChecksumsAreThoseOfRfc3720) {
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  EXPECT_EQ(crc32c(""), 0u);
}

TEST(EventFile, RecordsAreThoseOfTensorBoardsOwnWriter) {
  // By RecordWriter and event_pb2 of TensorBoard 2.20.
  constexpr char expected[] =
      "\x2c\x00\x00\x00\x00\x00\x00\x00\xf4\xae\xcc\x45\x09\x00\x00\x00\x00\x00\x00\xf8\x3f\x10\xac\x02\x2a\x1e\x0a\x11"
      "\x0a\x0a\x74\x72\x61\x69\x6e\x2f\x6c\x6f\x73\x73\x15\x00\x00\x20\x40\x0a\x09\x0a\x02\xc3\xa9\x15\x60\x42\xa2\x8d"
      "\x18\x73\x64\xbb";
  EXPECT_EQ(scalars_record(1.5, 300, {{"train/loss", 2.5f}, {"é", -1e-30f}}),
            std::string(expected, sizeof expected - 1));
}

/// One file in the folder, and its content.
EventFileContent events_of(const std::string& run_dir) {
  const std::vector<std::string> files = event_files(run_dir + "/tb");
  EXPECT_EQ(files.size(), 1u);
  return files.empty() ? EventFileContent() : read_events(slurp(files[0]));
}

/// The event file tells what metrics.jsonl does: the same keys with the same values at each step, no step twice.
void expect_same_as_metrics(const std::string& run_dir) {
  const EventFileContent got = events_of(run_dir);
  EXPECT_EQ(got.version, "brain.Event:2");
  EXPECT_EQ(got.writer, "mmfree");
  EXPECT_EQ(got.session_starts, 1);
  std::map<std::string, std::vector<EventFileContent::Point>> expected;
  for (const nlohmann::json& row : all_metrics(run_dir))
    for (const auto& [key, value] : row.items()) {
      if (key == "step" || key == "time" || !value.is_number()) continue;
      auto& points = expected[key];
      if (points.empty() || points.back().step < row["step"])
        points.push_back({row["step"], value.get<float>(), row["time"]});
    }
  EXPECT_GT(expected.size(), 8u);
  EXPECT_EQ(got.points.size(), expected.size());
  for (const auto& [key, points] : expected) {
    ASSERT_TRUE(got.points.contains(key)) << key;
    EXPECT_EQ(got.points.at(key), points) << key;
  }
}

TEST(TensorBoard, ARunWritesWhatItsMetricsHold) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.eval_every = 4;
  EXPECT_TRUE(train(c).finished);
  expect_same_as_metrics(dir / "run");
  const EventFileContent events = events_of(dir / "run");
  EXPECT_EQ(events.points.at("train/loss").size(), 12u);
  EXPECT_EQ(events.points.at("val/loss").size(), 4u) << "at steps 0, 4, 8 and 12";
  EXPECT_FALSE(events.points.contains("train/mfu")) << "it is unknown on the CPU";
}

TEST(TensorBoard, IsTurnedOffByItsKey) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.tensorboard = false;
  EXPECT_TRUE(train(c).finished);
  EXPECT_FALSE(fs::exists(dir / "run/tb"));
}

TEST(TensorBoard, NoStepAppearsTwiceAfterKillsAndResumes) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.steps = 100000;
  c.train.save_every = 7;
  c.train.eval_every = 5;
  c.train.eval_tokens = 50;
  spit(dir / "run.yaml", to_yaml(c));
  for (int kill = 0; kill < 3; ++kill) {
    Program training({"train", dir / "run.yaml", "-q", "--resume"});
    const int64_t from = checkpoint_steps(dir / "run").empty() ? 0 : checkpoint_steps(dir / "run").back();
    while (training.running()) {
      const std::vector<int64_t> steps = checkpoint_steps(dir / "run");
      if (!steps.empty() && steps.back() >= from + 14) break;
      ::usleep(2000);
    }
    ASSERT_TRUE(training.running()) << training.err();
    training.signal(SIGKILL);
    training.wait();
    EXPECT_EQ(event_files(dir / "run/tb").size(), 1u);
  }
  c.train.steps = checkpoint_steps(dir / "run").back() + 3;
  c.train.resume = {ResumeFrom::newest};
  EXPECT_TRUE(train(c).finished);
  expect_same_as_metrics(dir / "run");
}

TEST(TensorBoard, EmptiesItsOwnOlderFilesOnly) {
  const TempDir dir;
  fs::create_directories(dir / "tb");
  const std::string later = "events.out.tfevents.9000000000.mmfree";
  spit(dir / ("tb/" + later), event_file_start(3) + "torn");
  spit(dir / "tb/events.out.tfevents.0900000000.mmfree", "");
  const std::vector<std::string> others = {"events.out.tfevents.1000000000.host",
                                           "events.out.tfevents.1000000000.mmfree",
                                           "events.out.tfevents.1000000001.mmfree", "notes"};
  for (const std::string& name : others) spit(dir / ("tb/" + name), "mine");
  spit(dir / "tb/events.out.tfevents.1000000001.mmfree", event_record("another"));
  const TensorBoard written(dir / "tb", dir / "metrics.jsonl");
  EXPECT_EQ(written.path(), dir / "tb/events.out.tfevents.9000000001.mmfree") << "after the name of the older one";
  EXPECT_EQ(fs::file_size(dir / ("tb/" + later)), 0u);
  EXPECT_FALSE(fs::exists(dir / "tb/events.out.tfevents.0900000000.mmfree")) << "it was emptied long ago";
  for (const std::string& name : others) EXPECT_TRUE(fs::exists(dir / ("tb/" + name))) << name;
}

TEST(TensorBoard, LeavesOutWhatCannotBeAPoint) {
  const TempDir dir;
  spit(dir / "m.jsonl",
       "{\"step\": 1, \"a\": 1, \"time\": 5}\n{\"step\": 2, \"a\": null, \"b\": 1e99}\n{\"a\": 3}\nnot json\n"
       "{\"step\": 3, \"a\": 4} x\n{\"step\": -1, \"a\": 4}\n{\"step\": 1e300, \"a\": 4}\n{\"step\": 1, \"a\": 4}\n"
       "{\"step\": 3, \"\xff\": 4, \"" +
           std::string(2000, 'k') + "\": 4, \"a\": 5, \"a\": 6}\n");
  TensorBoard events(dir / "tb", dir / "m.jsonl");
  events.write({{"step", int64_t(4)}, {"a", std::nan("")}, {"b", -std::numeric_limits<double>::infinity()}});
  events.write({{"step", int64_t(4)}, {"a", int64_t(7)}, {"time", 8.5}});
  const EventFileContent got = read_events(slurp(events.path()));
  using Points = std::vector<EventFileContent::Point>;
  EXPECT_EQ(got.points.size(), 1u);
  EXPECT_EQ(got.points.at("a"), (Points{{1, 1, 5}, {3, 5, 0}, {4, 7, 8.5}}));
}

TEST(TensorBoard, WhatCannotBeWrittenEndsNoRunAndComesLater) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  fs::create_directories(dir / "run");
  spit(dir / "run/tb", "in the way");
  const std::string said = text_of([&] {
    Trainer trainer(c, true, false);
    fs::remove(dir / "run/tb");
    EXPECT_TRUE(trainer.run().finished);
  });
  EXPECT_EQ(said, "warning: " + (dir / "run/tb") +
                      ": is not a directory; TensorBoard's file is written anew with a later checkpoint\n");
  expect_same_as_metrics(dir / "run");
}

TEST(MetricsLine, AgreesWithAGeneralReader) {
  std::mt19937 random(1);
  const std::string pieces[] = {"{",     "}",      "\"a\"", "\"b/c\"", ":",          ",",   " ",
                                "1",     "-2.5e3", "null",  "true",    "\"t\\\"x\"", "inf", "nan",
                                "1e999", "[",      "]",     "\t",      "0.5",        "-",   "\""};
  int whole = 0;
  for (int i = 0; i < 200000; ++i) {
    std::string text = "{";
    for (int n = int(random() % 9); n > 0; --n)
      text +=
          random() % 3 ? "\"a\":" + pieces[random() % std::size(pieces)] + "," : pieces[random() % std::size(pieces)];
    if (text.back() == ',') text.pop_back();
    text += "}";
    MetricsLine line(text);
    std::string_view key;
    double value = 0;
    std::map<std::string, double> got;
    while (line.next(key, value)) got[std::string(key)] = value;
    const nlohmann::json general = nlohmann::json::parse(text, nullptr, false);
    if (!line.whole()) continue;
    ++whole;
    // Numbers beyond a double are errors there and no numbers here.
    if (text.find("1e999") != text.npos) continue;
    ASSERT_TRUE(general.is_object()) << text;
    for (const auto& [name, number] : general.items()) {
      if (!number.is_number() || name == "t\"x") continue;  // keys keep their escapes
      ASSERT_EQ(got[name], number.get<double>()) << text;
    }
  }
  EXPECT_GT(whole, 10000);
}

TEST(MetricsLine, ReadsEveryFlatObject) {
  std::mt19937_64 random(2);
  for (int i = 0; i < 20000; ++i) {
    const std::vector<std::pair<std::string, double>> row = {
        {"step", double(random() >> 12)}, {"train/x", std::bit_cast<double>(random())}, {"y", 0.1}};
    const std::string text = metrics_line(Metrics(row.begin(), row.end()));
    MetricsLine line(text);
    std::string_view key;
    double value = 0;
    for (const auto& [name, number] : row) {
      ASSERT_TRUE(line.next(key, value)) << text;
      EXPECT_EQ(key, name);
      EXPECT_TRUE(std::isfinite(number) ? value == number : std::isnan(value)) << text;
    }
    EXPECT_FALSE(line.next(key, value));
    EXPECT_TRUE(line.whole());
  }
}

TEST(GrowingFile, GivesEachWholeLineOnceAndNoticesAnotherFile) {
  const TempDir dir;
  GrowingFile file(dir / "f");
  std::string seen;
  const auto read = [&] {
    file.read([&](std::string_view line) { seen += std::string(line) + ";"; }, [&] { seen = "!"; });
    return seen;
  };
  EXPECT_EQ(read(), "") << "there is no file yet";
  spit(dir / "f", "a\nb");
  EXPECT_EQ(read(), "a;");
  std::ofstream(dir / "f", std::ios::app) << "c\n\nd\n";
  EXPECT_EQ(read(), "a;bc;;d;");
  EXPECT_EQ(read(), "a;bc;;d;");
  spit(dir / "g", "x\ny\nz\n1\n2\n3\n");
  fs::rename(dir / "g", dir / "f");
  EXPECT_EQ(read(), "!x;y;z;1;2;3;") << "replaced by a longer one";
  fs::resize_file(dir / "f", 4);
  EXPECT_EQ(read(), "!x;y;") << "cut back";
  fs::remove(dir / "f");
  EXPECT_EQ(read(), "!x;y;");
  fs::create_directory(dir / "f");
  EXPECT_THROW(read(), DataError);
}

TEST(GrowingFile, PassesOverLinesThatAreTooLong) {
  const TempDir dir;
  spit(dir / "f", "a\n" + std::string(GrowingFile::kMostLine + 5, 'x') + "\nb\n");
  GrowingFile file(dir / "f");
  std::string seen;
  file.read([&](std::string_view line) { seen += std::string(line) + ";"; });
  EXPECT_EQ(seen, "a;b;");
  EXPECT_EQ(file.passed_over(), 1);
}

}  // namespace
}  // namespace mmfree
