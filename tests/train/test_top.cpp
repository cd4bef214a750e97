// `mmfree top`: what it shows in little room, and that it leaves the terminal as it was.
#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <sys/ioctl.h>

#include <cmath>
#include <csignal>
#include <random>
#include <regex>
#include <thread>

#include "core/system/utf8.h"
#include "tests/support/program.h"
#include "train/watch/top_lines.h"

namespace mmfree {
namespace {
namespace fs = std::filesystem;

/// A run of `lines` lines with a configuration of 1,000 steps.
RunData made_run(const TempDir& dir, const std::string& name, int lines) {
  fs::create_directories(dir / name);
  std::string text;
  for (int step = 1; step <= lines; ++step)
    text += concat(
        "{\"step\": ", step, ", \"train/loss\": ", 5 + std::sin(step), ", \"train/tokens\": ", step * 100,
        ", \"train/step_time_ms\": 500, \"train/grad_norm\": 1e-7, \"train/peak_memory\": 1e300, \"val/loss\": 2, "
        "\"time\": 1000}\n");
  spit(dir / (name + "/metrics.jsonl"), text);
  RunConfig config;
  config.train.steps = 1000;
  spit(dir / (name + "/config.resolved.yaml"), to_yaml(config));
  return read_run(dir / name);
}

size_t characters(const std::string& text) {
  const std::string bare = std::regex_replace(text, std::regex("\x1b\\[[0-9;]*m"), "");
  EXPECT_EQ(find_invalid_utf8(bare), bare.npos);
  return size_t(std::count_if(bare.begin(), bare.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

std::string joined(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  return text;
}

TEST(Sparkline, ShowsTheCourseOfValues) {
  EXPECT_EQ(sparkline({0, 1, 2, 3, 4, 5, 6, 7}, 8, true), "▁▂▃▄▅▆▇█");
  EXPECT_EQ(sparkline({7, 0}, 8, false), "#_");
  EXPECT_EQ(sparkline({3, 3, 3}, 8, false), "~~~");
  EXPECT_EQ(sparkline({}, 8, true), "");
  EXPECT_EQ(sparkline({1, 2}, 0, true), "");
  EXPECT_EQ(sparkline(std::vector<double>(1000, 1.0), 5, false), "~~~~~");
  EXPECT_EQ(sparkline({-1e308, 1e308}, 2, false).size(), 2u) << "their difference is infinite";
}

TEST(Top, TellsHowFarARunIsAndHowLongItTakes) {
  const TempDir dir;
  std::vector<RunData> runs;
  runs.push_back(made_run(dir, "a", 250));
  runs.push_back(made_run(dir, "b", 0));
  runs.push_back(made_run(dir, "c", 1000));
  name_apart(runs);
  const std::string text = joined(top_lines(runs, {100, 60, false, true}, 1010));
  EXPECT_NE(text.find("● a  step 250/1000  ██"), text.npos) << text;
  EXPECT_NE(text.find("  25%  25.0k tokens  2m05s  eta 6m15s\n"), text.npos) << text;
  EXPECT_NE(text.find("● b  no metrics yet\n"), text.npos) << text;
  EXPECT_NE(text.find("finished\n"), text.npos) << text;
  EXPECT_NE(text.find("\n  val loss  2.0000     ▅▅▅"), text.npos) << text;
  EXPECT_EQ(text.find('\x1b'), text.npos);
  const std::string later = joined(top_lines(runs, {100, 60, false, true}, 1000 + 7200));
  EXPECT_NE(later.find("quiet for 2h00m\n"), later.npos) << later;
}

TEST(Top, ShowsTelemetryAlarmsAndSets) {
  const TempDir dir;
  made_run(dir, "a", 3);
  std::ofstream(dir / "a/metrics.jsonl", std::ios::app)
      << "{\"step\": 3, \"ternary/all/zeros\": 0.3125, \"ternary/all/flips\": 0.000125}\n"
      << "{\"step\": 3, \"alarm\": \"first\"}\n{\"step\": 4, \"alarm\": \"x: its scale \\u001b[2J fell\"}\n"
      << "{\"step\": 4, \"eval/a-long-name/loss\": 1.5}\n";
  std::vector<RunData> runs;
  runs.push_back(read_run(dir / "a"));
  const std::string text = joined(top_lines(runs, {100, 60, false, true}, 1010));
  EXPECT_NE(text.find("\n  alarm     2 in all, step 4: x: its scale \\u001b[2J fell\n"), text.npos) << text;
  EXPECT_NE(text.find("\n  zeros     31.2% "), text.npos) << text;
  EXPECT_NE(text.find("\n  flips     0.0125% "), text.npos) << text;
  EXPECT_NE(text.find("\n  on a-long 1.5000 "), text.npos) << text;
}

TEST(Top, FitsIntoAnyTerminal) {
  const TempDir dir;
  std::vector<RunData> runs;
  for (int i = 0; i < 7; ++i) runs.push_back(made_run(dir, concat("r", i), i * 30));
  name_apart(runs);
  runs[0].name = std::string(300, 'n');
  std::ofstream(dir / "r2/metrics.jsonl", std::ios::app)
      << "{\"step\": 99, \"alarm\": \"" << std::string(300, 'a') << "\", \"eval/b/loss\": 1}\n";
  runs[2].metrics->read();
  runs[1].name = "\x1b[2J\xff水水水水水水水水水水水水水水水水水水水水";
  std::mt19937 random(5);
  for (int i = 0; i < 500; ++i) {
    const TopStyle style{random() % 150, random() % 60, random() % 2 == 0, random() % 2 == 0};
    const std::vector<std::string> lines = top_lines(runs, style, 1000);
    ASSERT_LE(lines.size(), style.rows);
    for (const std::string& line : lines) {
      ASSERT_LE(characters(line), style.columns) << line;
      ASSERT_EQ(line.find("\x1b[2J"), line.npos) << "a name moves the terminal";
      ASSERT_TRUE(style.color || line.find('\x1b') == line.npos);
    }
  }
}

/// A terminal whose program is watched.
class Watched {
 public:
  explicit Watched(unsigned short columns) {
    const winsize size{20, columns, 0, 0};
    (void)!::openpty(&master_, &slave, nullptr, nullptr, &size);
  }
  ~Watched() { ::close(master_), ::close(slave); }
  void resize(unsigned short columns) const {
    const winsize size{20, columns, 0, 0};
    ::ioctl(master_, TIOCSWINSZ, &size);
  }
  /// Reads until `part` has been shown since the last call. Returns all that was.
  std::string until(const std::string& part) const {
    std::string text;
    char bytes[4096];
    while (text.find(part) == text.npos) {
      pollfd ready = {master_, POLLIN, 0};
      if (::poll(&ready, 1, 20000) <= 0) {
        ADD_FAILURE() << "not shown within 20 s: " << part << "; shown: " << text;
        return text;
      }
      const ssize_t n = ::read(master_, bytes, sizeof bytes);
      if (n <= 0) break;
      text.append(bytes, size_t(n));
    }
    return text;
  }
  int slave = -1;

 private:
  int master_ = -1;
};

TEST(Top, FollowsTheRunAndTheTerminalAndLeavesItAsItWas) {
  const TempDir dir;
  made_run(dir, "run", 3);
  for (const int signal : {SIGINT, SIGTERM}) {
    const Watched terminal(60);
    setenv("TERM", "xterm", 1);
    setenv("LC_ALL", "C.UTF-8", 1);
    Program top({"top", dir / "run", "--interval", "0.1"}, "", {terminal.slave, terminal.slave});
    std::string shown = terminal.until("step 3/1000");
    ASSERT_FALSE(HasFailure());
    EXPECT_NE(shown.find("\x1b[?1049h"), shown.npos);
    std::ofstream(dir / "run/metrics.jsonl", std::ios::app)
        << "{\"step\": 444, \"train/loss\": 1.25, \"time\": 1000}\n";
    terminal.until("1.2500");
    terminal.resize(24);
    top.signal(SIGWINCH);
    ASSERT_FALSE(HasFailure());
    shown = terminal.until("\x1b[J") + terminal.until("\x1b[J") + terminal.until("\x1b[J");
    EXPECT_TRUE(top.running());
    top.signal(signal);
    shown = terminal.until("\x1b[?1049l");
    EXPECT_NE(shown.find("\x1b[?25h"), shown.npos) << "the cursor is shown again";
    EXPECT_EQ(top.wait(), 0);
    spit(dir / "run/metrics.jsonl", "{\"step\": 3, \"train/loss\": 9, \"time\": 1000}\n");
  }
}

TEST(Top, WithoutATerminalItTellsOnceInPlainText) {
  const TempDir dir;
  made_run(dir, "run", 3);
  Program top({"top", dir / "run"});
  EXPECT_EQ(top.wait(), 0) << top.err();
  EXPECT_NE(top.out().find("step 3/1000"), std::string::npos) << top.out();
  EXPECT_EQ(top.out().find('\x1b'), std::string::npos);
  Program missing({"top", dir / "none"});
  EXPECT_EQ(missing.wait(), 66);
}

}  // namespace
}  // namespace mmfree
