// Commands other than training that several ranks do together: the results are one rank's.
#include <gtest/gtest.h>

#include "tests/support/program.h"
#include "tests/support/rank_run.h"

namespace mmfree {
namespace {

namespace fs = std::filesystem;
constexpr double kLong = 120;  ///< seconds, for what takes a moment on an idle machine

using Words = std::vector<std::string>;

/// A tokenizer, shards and a model that has hardly learned, in a folder.
class RankCommands : public testing::Test {
 protected:
  RankCommands() {
    const std::string book = slurp(source_dir() + "/data/books/burnett_secret_garden_1911.txt");
    fs::create_directory(dir_ / "text");
    for (size_t i = 0; i < 30; ++i) spit(dir_ / concat("text/", i, ".txt"), book.substr(3000 + i * 1500, 1500));
    spit(dir_ / "run.yaml",
         "model: {vocab_size: 400, hidden_size: 32, num_hidden_layers: 1, intermediate_size: 32}\n"
         "train: {steps: 2, batch_size: 2, threads: 1}\ndata: {seq_len: 16}\n");
    alone({"tokenizer", "train", dir_ / "text", "-o", tokenizer(), "--vocab-size", "400"});
    alone({"prepare", dir_ / "text", "-t", tokenizer(), "-o", dir_ / "shards", "--valid-fraction", "0"});
    alone({"train", dir_ / "run.yaml", "train.run_dir=" + (dir_ / "run"), "data.train=" + (dir_ / "shards/train-*.h5"),
           "data.tokenizer=" + tokenizer(), "-q"});
  }
  std::string tokenizer() const { return dir_ / "tokenizer.model"; }
  static std::string alone(const Words& words) {
    Program program(words);
    EXPECT_EQ(program.wait(), 0) << program.err();
    return program.out();
  }
  /// What rank 0 prints; the others print nothing.
  static std::string together(int ranks, Words words) {
    words.insert(words.begin(), program_path());
    const auto run = start_ranks(By::tcp, ranks, words);
    const std::vector<int> ended = run->wait(kLong);
    for (size_t r = 0; r < ended.size(); ++r) EXPECT_EQ(ended[r], 0) << run->err(r);
    for (size_t r = 1; r < ended.size(); ++r) EXPECT_EQ(run->out(r), "");
    return run->out(0);
  }
  TempDir dir_;
};

TEST_F(RankCommands, evaluate) {
  const auto eval = [&](const std::string& samples) {
    return Words{"eval",         dir_ / "run", dir_ / "text", "--seq-len", "64",     "--batch-size",  "3",
                 "--task-limit", "6",          "--tasks",     "recall",    "--json", "--log-samples", dir_ / samples};
  };
  const std::string one = alone(eval("one"));
  EXPECT_NE(one.find("\"recall"), std::string::npos);
  for (const int ranks : {2, 3}) {
    const std::string samples = concat("samples", ranks);
    EXPECT_EQ(together(ranks, eval(samples)), one) << ranks;
    EXPECT_EQ(slurp(dir_ / samples), slurp(dir_ / "one")) << ranks;
  }
}

TEST_F(RankCommands, prepare_a_part_each) {
  const auto prepare = [&](const std::string& output) {
    return Words{"prepare", dir_ / "text", "-t", tokenizer(), "-o", dir_ / output, "--valid-fraction", "0"};
  };
  const std::string told = together(2, prepare("together"));
  EXPECT_NE(told.find("part 2/2\ntrain  "), std::string::npos) << told;
  for (const char* part : {"1/2", "2/2"}) {
    Words words = prepare("alone");
    words.insert(words.end(), {"--part", part});
    alone(words);
  }
  size_t files = 0;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(dir_ / "alone")) {
    if (!entry.is_regular_file()) continue;
    const fs::path other = dir_ / "together" / fs::relative(entry.path(), dir_ / "alone");
    EXPECT_EQ(slurp(other), slurp(entry.path())) << other;
    ++files;
  }
  EXPECT_GE(files, 4u);
}

}  // namespace
}  // namespace mmfree
