// What prepare, tokenizer train and eval say of the text that they are given.
#include <gtest/gtest.h>

#include "data/token_shards.h"
#include "tests/support/corpus.h"
#include "tests/support/program.h"
#include "tests/support/tiny_run.h"

namespace mmfree {
namespace {

using testing_data::babble;
using testing_data::compress;
using testing_data::gzip;

/// Rows whose text has another name.
std::string contents(int rows) {
  std::string lines;
  for (int i = 0; i < rows; ++i) lines += nlohmann::json{{"content", babble(300, unsigned(i))}}.dump() + "\n";
  return lines;
}

class TextInputs : public testing::Test {
 protected:
  /// Prepares `inputs` into the folder `name`, with `input` as standard input.
  std::unique_ptr<Program> prepared(const std::string& name, std::vector<std::string> arguments,
                                    const std::string& input = "") {
    for (const std::string& a : {std::string("-t"), TinyCorpus::get().tokenizer_path(), std::string("-o"), dir / name})
      arguments.push_back(a);
    arguments.insert(arguments.begin(), "prepare");
    return std::make_unique<Program>(arguments, input);
  }
  int64_t tokens(const std::string& name) { return TokenShards({dir / name}).total_tokens(); }

  TempDir dir;
};

TEST_F(TextInputs, TheSameRowsFromAFileAFolderAndStandardInput) {
  const std::string lines = contents(40);
  std::filesystem::create_directories(dir / "in/sub");
  spit(dir / "in/sub/A.JSONL.GZ", gzip(lines)), spit(dir / "in/d.parquet", "x");
  auto folder = prepared("a", {dir / "in", "--text-field", "content", "--valid-fraction", "0"});
  ASSERT_EQ(folder->wait(), 0) << folder->err();
  EXPECT_NE(folder->out().find("passed over 1 file of another type: " + dir / "in/d.parquet\n"), std::string::npos);
  auto stream = prepared("b", {"-", "--text-field", "content", "--valid-fraction", "0"}, compress(lines));
  ASSERT_EQ(stream->wait(), 0) << stream->err();
  EXPECT_EQ(tokens("a"), tokens("b"));
  EXPECT_EQ(slurp(dir / "a/train-00000.h5").size(), slurp(dir / "b/train-00000.h5").size());
}

TEST_F(TextInputs, AMalformedRowNamesTheOptionAndSkippedRowsAreCounted) {
  spit(dir / "a.jsonl", "{\"text\":\"a\xE9\"}\n{\"text\":null}\n");
  auto refused = prepared("a", {dir / "a.jsonl"});
  EXPECT_EQ(refused->wait(), 65);
  EXPECT_EQ(refused->err(), "mmfree: " + dir /
                                             "a.jsonl:1: byte 11: not valid UTF-8 (E9); correct it, or pass over such "
                                             "rows with --skip-malformed\n");
  const std::string counts = "2 malformed rows (1: \"text\" is null, 1: not valid UTF-8)";
  auto empty = prepared("a", {dir / "a.jsonl", "--skip-malformed"});
  EXPECT_EQ(empty->wait(), 65);
  EXPECT_NE(empty->err().find(counts), std::string::npos) << empty->err();
  auto some = prepared(
      "a", {dir / "a.jsonl", spit(dir / "b.json", "[{\"text\":\"x\"}]"), "--skip-malformed", "--valid-fraction", "0"});
  EXPECT_EQ(some->wait(), 0) << some->err();
  EXPECT_NE(some->out().find("Skipped " + counts + ".\n"), std::string::npos) << some->out();
  auto both = prepared("a", {dir / "a.jsonl", "--skip-malformed", "--strict"});
  EXPECT_EQ(both->wait(), 2);
  auto strict = prepared("c", {spit(dir / "c.jsonl", "{\"text\":\"a\"}\n\n"), "--strict"});
  EXPECT_EQ(strict->wait(), 65);
  EXPECT_NE(strict->err().find("c.jsonl:2: byte 1: a blank line"), std::string::npos);
}

TEST_F(TextInputs, AVocabularyIsMadeOfTheFieldAndSaysWhatItSkipped) {
  std::filesystem::create_directory(dir / "in");
  spit(dir / "in/a.json", "[" + nlohmann::json{{"body", {{"raw", babble(20000, 1)}}}}.dump() + ", 3]");
  spit(dir / "in/README", "x");
  const std::vector<std::string> command = {"tokenizer",    "train", dir / "in",     "-o",       dir / "t.model",
                                            "--vocab-size", "300",   "--text-field", "body.raw", "--skip-malformed"};
  Program p(command);
  ASSERT_EQ(p.wait(), 0) << p.err();
  EXPECT_EQ(p.err(), "passed over 1 file of another type: " + dir / "in/README" +
                         "\nskipped 1 malformed row (1: not an object)\n");
  spit(dir / "in/a.json", "[3, 4]");
  Program nothing({"tokenizer", "train", dir / "in/a.json", "-o", dir / "u.model", "--skip-malformed"});
  EXPECT_EQ(nothing.wait(), 65);
  EXPECT_NE(nothing.err().find("skipped 2 malformed rows (2: not an object)"), std::string::npos) << nothing.err();
  Program pairs(
      {"tokenizer", "train",
       spit(dir / "p.jsonl", nlohmann::json{{"prompt", babble(9000, 1)}, {"completion", babble(9000, 2)}}.dump()), "-o",
       dir / "p.model", "--vocab-size", "300"});
  EXPECT_EQ(pairs.wait(), 0) << pairs.err();
  Program ids({"tokenizer", "train", spit(dir / "i.jsonl", "{\"ids\":[1]}"), "-o", dir / "i.model"});
  EXPECT_EQ(ids.wait(), 65);
  EXPECT_NE(ids.err().find("i.jsonl: holds rows of token ids"), std::string::npos) << ids.err();
}

}  // namespace
}  // namespace mmfree
