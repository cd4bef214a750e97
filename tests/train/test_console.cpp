// The program with a reader who is stuck, with a terminal, and with metrics that cannot be written.
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <csignal>
#include <thread>

#include "tests/support/program.h"
#include "tests/support/readers.h"
#include "tests/support/training.h"

namespace mmfree {
namespace {
namespace fs = std::filesystem;

template <class Condition>
void wait_until(Condition&& met) {
  for (int i = 0; !met(); ++i) {
    ASSERT_LT(i, 3000) << "nothing happened for a minute";
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

/// The status of a program that should end now; 1000 + SIGKILL if it does not.
int ended(Program& p) {
  for (int i = 0; p.running() && i < 3000; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  p.signal(SIGKILL);
  return p.wait();
}

/// A folder with a model and the configuration of a long run.
class Readers : public testing::Test {
 protected:
  Readers() {
    const Model m = tiny_model(tiny_model_config());
    RunConfig c;
    c.model = m.config;
    c.data.seq_len = m.seq_len;
    save_checkpoint(model, c, *m.params, {m.params->values(), {}}, {}, m.tokenizer->serialized());
    c = tiny_run(run_dir);
    c.train.steps = 1000000;
    spit(config, to_yaml(c));
  }

  TempDir dir;
  const std::string model = dir / "m.h5", run_dir = dir / "run", config = dir / "run.yaml";
};

TEST_F(Readers, TrainingSavesAtASignalWhoeverIsStuck) {
  const FullPipe pipe;
  const Terminal terminal;
  terminal.stop();
  for (const auto& [reader, signal] :
       {std::pair{static_cast<const Reader*>(&pipe), SIGTERM}, {static_cast<const Reader*>(&terminal), SIGINT}}) {
    fs::remove_all(run_dir);
    Program training({"train", config}, "", {reader->writing_end(), reader->writing_end()});
    wait_until([&] { return all_metrics(run_dir).size() > 20 || !training.running(); });
    training.signal(signal);
    EXPECT_EQ(ended(training), 75);
    EXPECT_EQ(checkpoint_steps(run_dir).size(), 1u);
  }
}

TEST_F(Readers, TrainingSaysWhatAStuckReaderMissed) {
  const FullPipe pipe;
  Program training({"train", config}, "", {pipe.writing_end(), pipe.writing_end()});
  wait_until([&] { return all_metrics(run_dir).size() > 20 || !training.running(); });
  std::string said;
  wait_until([&] { return contains(said += pipe.read(), "bytes of output are lost here") || !training.running(); });
  EXPECT_TRUE(contains(said, "\nstep ")) << "what follows is shown again";
  training.signal(SIGTERM);
  wait_until([&] { return contains(said += pipe.read(), "stopped early") || !training.running(); });
  EXPECT_EQ(ended(training), 75);
}

TEST_F(Readers, GenerateAndScoreHeedTheFirstSignal) {
  const FullPipe pipe;
  const std::vector<std::string> generate = {"generate", model, "-n", "100000", "--ignore-eos"},
                                 score = {"score", model, "--text", tiny_text(2000, 3)};
  for (const auto& command : {generate, score})
    for (const int signal : {SIGTERM, SIGINT}) {
      SCOPED_TRACE(command[0]);
      Program p(command, "", {pipe.writing_end(), -1});
      std::this_thread::sleep_for(std::chrono::seconds(1));
      EXPECT_TRUE(p.running());
      p.signal(signal);
      EXPECT_EQ(ended(p), 75);
      EXPECT_EQ(p.err(), concat("mmfree: stopped by ", signal == SIGINT ? "SIGINT" : "SIGTERM",
                                "; the same command starts over\n"));
    }
  EXPECT_EQ(pipe.read(), std::string(FullPipe::kBytes, 'x'));
}

TEST_F(Readers, AnErrorIsNoReasonToStay) {
  const FullPipe pipe;
  const Terminal terminal;
  terminal.stop();
  spit(dir / "bad.jsonl", "[]\n");
  const std::pair<int, std::vector<std::string>> cases[] = {
      {66, {"info", dir / "none"}}, {65, {"score", model, "--input", dir / "bad.jsonl"}}, {2, {}}};
  for (const auto& [status, command] : cases) {
    Program p(command, "", {-1, pipe.writing_end()}), q(command, "", {-1, terminal.writing_end()});
    EXPECT_EQ(ended(p), status);
    EXPECT_EQ(ended(q), status);
  }
}

TEST_F(Readers, EvalLeavesAtASignalWithoutAWordToAStuckReader) {
  const FullPipe pipe;
  spit(dir / "a.txt", tiny_text(100'000, 3));
  std::vector<std::string> words = {"eval", model};
  words.insert(words.end(), 2000, dir / "a.txt");
  Program evaluating(words, "", {-1, pipe.writing_end()});
  std::this_thread::sleep_for(std::chrono::seconds(1));
  evaluating.signal(SIGTERM);
  EXPECT_EQ(ended(evaluating), 75);
  EXPECT_EQ(evaluating.out(), "");
}

/// What a terminal gets as both outputs of the program.
std::string shown(const std::vector<std::string>& arguments) {
  const Terminal terminal;
  Program p(arguments, "", {terminal.writing_end(), terminal.writing_end()});
  std::string all;
  while (p.running()) all += terminal.read();
  return all + terminal.read();
}

TEST_F(Readers, PiecesOfATokenizerDoNotSteerATerminal) {
  std::string bytes = TinyCorpus::get().tokenizer().serialized();
  bytes.replace(bytes.find("<unk>"), 5, "\x1b[2Jx");
  spit(dir / "t.model", bytes);
  const std::vector<std::string> info = {"tokenizer", "info", dir / "t.model"};
  EXPECT_TRUE(contains(shown(info), "  unk 0 \\x1b[2Jx\n"));
  Program to_file(info);
  EXPECT_EQ(to_file.wait(), 0);
  EXPECT_TRUE(contains(to_file.out(), "  unk 0 \x1b[2Jx\n"));
}

TEST_F(Readers, GeneratedTextDoesNotSteerATerminal) {
  const std::vector<std::string> generate = {"generate", model, "-n", "0", "-p", "a\u009b\x1b[2Jé水"};
  EXPECT_EQ(shown(generate), "a\\u{9b}\\x1b[2Jé水\n");
  Program to_file(generate);
  EXPECT_EQ(to_file.wait(), 0);
  EXPECT_EQ(to_file.out(), "a\u009b\x1b[2Jé水\n");
}

TEST_F(Readers, NamesDoNotSteerATerminal) {
  EXPECT_EQ(shown({"info", "no\u009bA\x9bZ\u202e"}), "mmfree: no\\u{9b}A\\x9bZ\\u{202e}: does not exist\n");
  EXPECT_EQ(shown({"frob\u202e"}).find("mmfree: no command 'frob\\u{202e}'"), 0u);
  spit(dir / "bad.yaml", "\"hid\\u009b\\u202e\": 3\n");
  const std::string refused = shown({"train", dir / "bad.yaml"});
  EXPECT_TRUE(contains(refused, "'hid\\u{9b}\\u{202e}'")) << refused;
  const std::string odd = dir / "run\u202e\u009b";
  const std::string trained = shown({"train", config, "train.steps=2", "optim.warmup_steps=0", "train.run_dir=" + odd});
  EXPECT_TRUE(contains(trained, "run\\u{202e}\\u{9b}: 2 steps of")) << trained;
  EXPECT_TRUE(contains(trained, "run\\u{202e}\\u{9b}/checkpoints/step-00000002.h5\n")) << trained;
  EXPECT_FALSE(contains(trained, "\u202e")) << trained;
  EXPECT_TRUE(fs::exists(checkpoint_path(odd, 2)));
}

TEST_F(Readers, NamesThatAreNotUtf8AreSaidInJsonToo) {
  fs::copy(model, dir / "m\x9b.h5");
  spit(dir / "a.txt", "ka lo mi");
  Program p({"eval", dir / "m\x9b.h5", dir / "a.txt", "--json"});
  EXPECT_EQ(p.wait(), 0) << p.err();
  EXPECT_TRUE(contains(p.out(), "m\ufffd.h5")) << p.out();
}

/// A run whose metrics go to /dev/full, which takes nothing.
RunConfig run_without_metrics(const std::string& run_dir, OnSaveError policy) {
  RunConfig c = tiny_run(run_dir);
  c.train.save_every = 3;
  c.train.keep_last = 10;
  c.train.on_save_error = policy;
  fs::create_directory(run_dir);
  fs::create_symlink("/dev/full", run_dir + "/metrics.jsonl");
  return c;
}

TEST(Metrics, ThoseThatCannotBeWrittenKeepNoCheckpointFromBeingSaved) {
  for (const OnSaveError policy : {OnSaveError::carry_on, OnSaveError::stop}) {
    const TempDir dir;
    const RunConfig c = run_without_metrics(dir / "run", policy);
    const std::string said = text_of([&] { EXPECT_TRUE(train(c).finished); });
    EXPECT_EQ(checkpoint_steps(dir / "run"), (std::vector<int64_t>{3, 6, 9, 12}));
    EXPECT_EQ(said, "warning: " + (dir / "run/metrics.jsonl") +
                        ": cannot write metrics: No space left on device; metrics are kept in memory and written "
                        "later; training goes on\nwarning: metrics of the steps from 1 to 12 are lost\n");
  }
}

TEST(Metrics, ThoseOfARunThatIsStoppedAreToldAsLost) {
  const TempDir dir;
  RunConfig c = run_without_metrics(dir / "run", OnSaveError::stop);
  c.train.steps = 1000;
  const std::string said = text_of([&] {
    Trainer trainer(c, true, false);
    raise(SIGTERM);
    EXPECT_FALSE(trainer.run().finished);
  });
  EXPECT_EQ(checkpoint_steps(dir / "run"), (std::vector<int64_t>{0}));
  EXPECT_EQ(said, "") << "no step was made, so none is lost";
  spit(dir / "run.yaml", to_yaml(c));
  Program training({"train", dir / "run.yaml", "--resume"});
  wait_until([&] { return checkpoint_steps(dir / "run").size() > 2 || !training.running(); });
  training.signal(SIGTERM);
  EXPECT_EQ(training.wait(), 75);
  EXPECT_TRUE(contains(training.err(), "warning: metrics of the steps from 1 to ")) << training.err();
}

TEST(Metrics, AFileThatIsNoneEndsTheStartInOneLine) {
  const TempDir dir;
  const std::string path = dir / "run/metrics.jsonl";
  spit(dir / "run.yaml", to_yaml(tiny_run(dir / "run")));
  const auto refused = [&](const char* kind) {
    Program p({"train", dir / "run.yaml", "-q"});
    EXPECT_EQ(ended(p), 73) << kind;
    EXPECT_EQ(p.err(), "mmfree: " + path +
                           ": metrics go into a regular file, and this is none; remove it, or choose another "
                           "train.run_dir\n");
    fs::remove_all(dir / "run");
    fs::create_directory(dir / "run");
  };
  fs::create_directory(dir / "run");
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  refused("a pipe nobody reads");
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  const Fd both(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  refused("a pipe that somebody has open");
  sockaddr_un address = {AF_UNIX, {}};
  ASSERT_LT(path.size(), sizeof address.sun_path);
  path.copy(address.sun_path, path.size());
  const Fd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  refused("a socket");
}

}  // namespace
}  // namespace mmfree
