// Signals that ask a command to end: what it says, its status and what it leaves behind.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <csignal>
#include <thread>

#include "core/error.h"
#include "core/system/signals.h"
#include "data/staging.h"
#include "tests/support/program.h"
#include "tests/support/tiny_run.h"
#include "train/formats/ternary_file.h"
#include "train/run/checkpoint.h"

namespace mmfree {
namespace {
namespace fs = std::filesystem;

struct Signal {
  int number;
  std::string said;
};
const Signal kAll[] = {{SIGTERM, "mmfree: stopped by SIGTERM; the same command starts over\n"},
                       {SIGINT, "mmfree: stopped by SIGINT; the same command starts over\n"},
                       {SIGUSR1, "mmfree: stopped by SIGUSR1; the same command starts over\n"},
                       {SIGHUP, "mmfree: stopped by SIGHUP; the same command starts over\n"}};

template <class Condition>
void wait_until(Condition&& met) {
  for (int i = 0; !met(); ++i) {
    ASSERT_LT(i, 3000) << "nothing happened for a minute";
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

TEST(Signals, ASecondInterruptLeavesAtOnce) {
  EXPECT_EXIT(
      {
        const StopSignals signals;
        raise(SIGINT);
        if (StopSignals::pending() == SIGINT) raise(SIGINT);
      },
      testing::ExitedWithCode(130), "^$");
}

TEST(Signals, ASecondInterruptLeavesAtOnceWhateverCameBetween) {
  EXPECT_EXIT(
      {
        const StopSignals signals;
        raise(SIGINT);
        raise(SIGTERM);
        if (StopSignals::pending() == SIGTERM) raise(SIGINT);
      },
      testing::ExitedWithCode(130), "^$");
}

TEST(Signals, ARunThatStopsSaysOnceHowItGoesOn) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.train.max_time = 1e-9;
  spit(dir / "run.yaml", to_yaml(c));
  Program program({"train", dir / "run.yaml"});
  EXPECT_EQ(75, program.wait());
  const std::string said = program.out() + program.err();
  const size_t at = said.find("continue with the same command and --resume\n");
  ASSERT_NE(at, said.npos) << said;
  EXPECT_EQ(said.find("--resume"), said.rfind("--resume")) << said;
}

TEST(Signals, AHangupThatWasIgnoredStaysIgnored) {
  const auto before = std::signal(SIGHUP, SIG_IGN);
  {
    const StopSignals signals;
    raise(SIGHUP);
    EXPECT_EQ(StopSignals::pending(), 0);
  }
  EXPECT_EQ(std::signal(SIGHUP, before), SIG_IGN);
}

TEST(Signals, SeveralNestAsOneAndTheLastRestoresWhatWasThere) {
  static int seen = 0;
  const auto before = std::signal(SIGUSR1, [](int) { ++seen; });
  {
    const StopSignals outer;
    raise(SIGUSR1);
    {
      const StopSignals inner;
      EXPECT_EQ(StopSignals::pending(), SIGUSR1) << "forgotten";
    }
    raise(SIGTERM);
    EXPECT_EQ(StopSignals::pending(), SIGTERM);
    EXPECT_EQ(seen, 0);
  }
  EXPECT_EQ(StopSignals::pending(), 0) << "it asked what has ended";
  raise(SIGUSR1);
  EXPECT_EQ(seen, 1);
  {
    const StopSignals again;
    EXPECT_EQ(StopSignals::pending(), 0);
  }
  std::signal(SIGUSR1, before);
}

TEST(Signals, WorkWithoutTracesEndsAtTheFirst) {
  const StopSignals signals;
  EXPECT_NO_THROW(throw_if_stopped());
  for (const Signal& s : kAll) {
    const auto during = [&] {
      const LeaveAtOnce leaving;
      raise(s.number);
    };
    const auto before = [&] {
      raise(s.number);
      const LeaveAtOnce leaving;
    };
    EXPECT_EXIT(during(), testing::ExitedWithCode(75), s.said);
    EXPECT_EXIT(before(), testing::ExitedWithCode(75), s.said);
  }
  { const LeaveAtOnce over; }
  raise(SIGTERM);
  EXPECT_THROW(throw_if_stopped(), Error);
}

TEST(Signals, GenerateEndsAfterTheTokenInHand) {
  const TempDir dir;
  const Model m = tiny_model(tiny_model_config());
  RunConfig c;
  c.model = m.config;
  save_checkpoint(dir / "m.h5", c, *m.params, {m.params->values(), {}}, {}, m.tokenizer->serialized());
  for (const Signal& s : kAll) {
    Program p({"generate", dir / "m.h5", "-n", "100000000", "--ignore-eos"});
    wait_until([&] { return p.out().size() > 20; });
    p.signal(s.number);
    EXPECT_EQ(p.wait(), 75);
    EXPECT_EQ(p.err(), s.said);
  }
}

TEST(Signals, ExportsLeaveNothingBehind) {
  const TempDir dir;
  Model m = tiny_model(tiny_model_config());
  const StopSignals signals;
  raise(SIGTERM);
  EXPECT_THROW(export_ternary(dir / "m.mmfree", m, EmbeddingStore::f32, [] { throw_if_stopped(); }), Error);
  EXPECT_EQ(dir.files(), 0u);
}

TEST(Signals, PrepareKeepsWholeShardsBesideTheOldOnes) {
  const TempDir dir;
  std::string lines;
  for (uint64_t d = 0; d < 500; ++d) lines += nlohmann::json{{"text", tiny_text(200, d)}}.dump() + "\n";
  spit(dir / "a.jsonl", lines);
  const std::string out = dir / "deep/out", waiting = out + "/.preparing",
                    tokenizer = TinyCorpus::get().tokenizer_path();
  std::vector<std::string> arguments = {"prepare", "-t", tokenizer, "-o", out, "--overwrite", "--shard-tokens", "1000"};
  arguments.insert(arguments.end(), 5000, dir / "a.jsonl");  // minutes of work
  const auto stop = [&](const Signal& s) {
    const auto whole = [&] { return fs::exists(waiting) ? shards_in(waiting).size() : 0; };
    const auto before = whole();
    Program p(arguments);
    wait_until([&] { return whole() >= before + 4 || !p.running(); });
    p.signal(s.number);
    EXPECT_EQ(p.wait(), 75);
    const std::string said = concat("mmfree: stopped by ", signal_name(s.number),
                                    "; the same command goes on after the ", "shards that are whole\n");
    EXPECT_TRUE(p.err().ends_with(said)) << p.err();
    EXPECT_EQ(p.out(), "");
    EXPECT_GE(whole(), before + 4);
    return p.err();
  };
  for (const Signal& s : kAll) {
    EXPECT_EQ(stop(s).find("going on") == std::string::npos, s.number == kAll[0].number);
    EXPECT_EQ(std::distance(fs::directory_iterator(out), {}), 1);
  }
  Program whole({"prepare", "-t", tokenizer, "-o", out, dir / "a.jsonl"});
  ASSERT_EQ(whole.wait(), 0) << whole.err();
  const std::string train = slurp(out + "/train-00000.h5"), valid = slurp(out + "/valid-00000.h5");
  stop(kAll[0]);
  EXPECT_EQ(std::distance(fs::directory_iterator(out), {}), 4) << "two shards, their mark, what waits";
  EXPECT_EQ(slurp(out + "/train-00000.h5"), train);
  EXPECT_EQ(slurp(out + "/valid-00000.h5"), valid);
}

TEST(Signals, TokenizerTrainingLeavesNothing) {
  const TempDir dir;
  spit(dir / "big.txt", tiny_text(400'000, 3));
  std::vector<std::string> arguments = {"tokenizer", "train", "-o", dir / "deep/er/tok.model", "--vocab-size", "400"};
  arguments.insert(arguments.end(), 60, dir / "big.txt");  // much longer than the wait
  Program p(arguments);
  std::this_thread::sleep_for(std::chrono::seconds(1));
  p.signal(SIGTERM);
  EXPECT_EQ(p.wait(), 75);
  EXPECT_EQ(p.err(), kAll[0].said);
  EXPECT_EQ(dir.files(), 1u);
}

TEST(Signals, EvalAndScoreEndAtOnce) {
  const TempDir dir;
  const Model m = tiny_model(tiny_model_config());
  RunConfig c;
  c.model = m.config;
  c.data.seq_len = m.seq_len;
  save_checkpoint(dir / "m.h5", c, *m.params, {m.params->values(), {}}, {}, m.tokenizer->serialized());
  spit(dir / "a.txt", tiny_text(100'000, 3));
  std::vector<std::string> eval = {"eval", dir / "m.h5"};
  eval.insert(eval.end(), 2000, dir / "a.txt");
  Program evaluating(eval);
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  evaluating.signal(SIGTERM);
  EXPECT_EQ(evaluating.wait(), 75);
  EXPECT_EQ(evaluating.err(), kAll[0].said);
  EXPECT_EQ(evaluating.out(), "");

  // Waiting for a line that never comes.
  const std::string pipe = dir / "pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  const int open_for_writing = open(pipe.c_str(), O_RDWR);
  const std::string line = "[1, 2, 3]\n";
  ASSERT_EQ(write(open_for_writing, line.data(), line.size()), ssize_t(line.size()));
  Program scoring({"score", dir / "m.h5", "--input", pipe});
  wait_until([&] { return !scoring.out().empty() || !scoring.running(); });
  scoring.signal(SIGINT);
  EXPECT_EQ(scoring.wait(), 75);
  EXPECT_EQ(scoring.err(), kAll[1].said);
  const std::string said = scoring.out();
  EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
  close(open_for_writing);
}

}  // namespace
}  // namespace mmfree
