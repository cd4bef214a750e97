#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#include <algorithm>
#include <memory>

#include "core/error.h"
#include "data/text/text_reader.h"
#include "tests/support/corpus.h"

namespace mmfree {
namespace {

using testing_data::babble;
using testing_data::compress;
using testing_data::jsonl;

/// Compressed in blocks of `bytes` bytes of text, as a program does that flushes now and then.
std::string compress_in_blocks(const std::string& bytes, size_t block) {
  const std::unique_ptr<ZSTD_CStream, size_t (*)(ZSTD_CStream*)> stream(ZSTD_createCStream(), ZSTD_freeCStream);
  std::string out(2 * ZSTD_compressBound(bytes.size()), '\0');
  ZSTD_outBuffer to{out.data(), out.size(), 0};
  for (size_t at = 0; at < bytes.size(); at += block) {
    ZSTD_inBuffer from{bytes.data() + at, std::min(block, bytes.size() - at), 0};
    ZSTD_compressStream2(stream.get(), &to, &from, at + block < bytes.size() ? ZSTD_e_flush : ZSTD_e_end);
  }
  out.resize(to.pos);
  return out;
}

std::vector<std::string> read_all(TextReader& reader) {
  std::vector<std::string> out;
  for (std::string text; reader.next(&text);) out.push_back(text);
  return out;
}

TEST(LineReader, ReadsStandardInput) {
  TempDir dir;
  spit(dir / "in", "one\n\nthree");
  const int before = ::dup(STDIN_FILENO), in = ::open((dir / "in").c_str(), O_RDONLY);
  ASSERT_GE(::dup2(in, STDIN_FILENO), 0);
  std::vector<std::string> lines;
  {
    LineReader reader("-");
    for (std::string line; reader.next(&line);) lines.push_back(line);
    EXPECT_EQ(reader.bytes_read(), 10);
  }
  EXPECT_EQ(lines, (std::vector<std::string>{"one", "", "three"}));
  EXPECT_GE(::fcntl(STDIN_FILENO, F_GETFD), 0) << "closed";
  ::dup2(before, STDIN_FILENO);
  ::close(before), ::close(in);
}

TEST(TextReader, AllFormsInOrder) {
  TempDir dir;
  const std::vector<std::string> texts = {"one\n\"two\" \\ é😀", "", babble(100000, 1), "last"};
  spit(dir / "a.txt", "a book\n");
  spit(dir / "b.jsonl", jsonl(texts) + "\n  \r\n" + R"({"text":"no final line break"})");
  spit(dir / "c.jsonl.zst", compress(jsonl(texts)) + compress(jsonl({"second frame"})));
  spit(dir / "ignored.md", "x");
  TextReader reader({dir.path()});
  std::vector<std::string> expected = {"a book\n"};
  expected.insert(expected.end(), texts.begin(), texts.end());
  expected.push_back("no final line break");
  expected.insert(expected.end(), texts.begin(), texts.end());
  expected.push_back("second frame");
  EXPECT_EQ(read_all(reader), expected);
  EXPECT_EQ(reader.bytes_read(), reader.total_bytes());
}

TEST(TextReader, MalformedLinesAreNamedOrSkipped) {
  TempDir dir;
  const std::string deep = R"({"text":"deep","a":)" + std::string(100000, '[') + std::string(100000, ']') + "}";
  for (const std::string& bad :
       {std::string("{"), std::string("[1]"), std::string(R"({"text":3})"), std::string(R"({"txt":"a"})"),
        std::string("{\"text\":\"\xFF\"}"), deep, std::string(R"({"text":"a","text":"b"})"),
        std::string("{\"text\":\"a\"}\0", 13), std::string(R"({"a":{"text":"inner"}})"), std::string("\"text\"")}) {
    spit(dir / "a.jsonl", R"({"text":"good"})"
                          "\n" +
                              bad + "\n" + R"({"text":"more"})");
    TextReader strict({dir / "a.jsonl"}), lenient({dir / "a.jsonl"}, true);
    try {
      read_all(strict);
      ADD_FAILURE() << bad.substr(0, 40);
    } catch (const DataError& e) {
      EXPECT_NE(std::string(e.what()).find("a.jsonl:2:"), std::string::npos) << e.what();
    }
    EXPECT_EQ(read_all(lenient), (std::vector<std::string>{"good", "more"}));
    EXPECT_EQ(lenient.skipped_lines(), 1);
  }
}

TEST(TextReader, BlocksOfAnySizeAreReadToTheirEnd) {
  TempDir dir;
  const std::vector<std::string> texts = {babble(60000, 1), babble(10, 2)};
  for (size_t block : {1000, 100000, 131071, 131072, 131073}) {
    spit(dir / "a.jsonl.zst", compress_in_blocks(jsonl(texts), block));
    TextReader reader({dir / "a.jsonl.zst"});
    EXPECT_EQ(read_all(reader), texts) << block;
  }
  // When all input is read, the decoder still holds a part of the last block.
  const std::vector<std::string> one = {std::string(190000, 'k')};
  spit(dir / "a.jsonl.zst", compress_in_blocks(jsonl(one), 100000));
  TextReader reader({dir / "a.jsonl.zst"});
  EXPECT_EQ(read_all(reader), one);
  // The decoder's last output fills the reader's block to the byte.
  for (size_t bytes : {131071, 131072, 131073, 262144, 524288}) {
    const std::vector<std::string> exact = {std::string(bytes - jsonl({""}).size(), 'k')};
    ASSERT_EQ(jsonl(exact).size(), bytes);
    spit(dir / "a.jsonl.zst", compress_in_blocks(jsonl(exact), 100000));
    TextReader to_the_end({dir / "a.jsonl.zst"});
    EXPECT_EQ(read_all(to_the_end), exact) << bytes;
  }
}

TEST(TextReader, EachFileCountsItsOwnLines) {
  TempDir dir;
  spit(dir / "a.jsonl", jsonl({"one", "two", "three"}));
  spit(dir / "b.jsonl", jsonl({"one"}) + "{");
  TextReader reader({dir.path()});
  try {
    read_all(reader);
    ADD_FAILURE();
  } catch (const DataError& e) {
    EXPECT_NE(std::string(e.what()).find("b.jsonl:2:"), std::string::npos) << e.what();
  }
}

TEST(TextReader, WhatIsTooLongIsRefusedAndNotSkipped) {
  TempDir dir;
  const auto refusal = [&](const std::string& name) {
    TextReader reader({dir / name}, true);
    try {
      return concat(read_all(reader).size(), " documents");
    } catch (const DataError& e) {
      return std::string(e.what());
    }
  };
  const int64_t most = TextReader::kMaxDocumentBytes;
  const std::string front = "{\"text\":\"", back = "\"}\n";
  spit(dir / "long.jsonl", front + std::string(size_t(most) + 1, 'x') + back);
  EXPECT_NE(refusal("long.jsonl").find("long.jsonl:1: the document has more than"), std::string::npos);
  for (const char* name : {"line.jsonl", "book.txt"}) {
    spit(dir / name, "");
    std::filesystem::resize_file(dir / name, uintmax_t(2 * most) + 1);
  }
  EXPECT_NE(refusal("line.jsonl").find("a line is longer than"), std::string::npos);
  EXPECT_NE(refusal("book.txt").find("expected at most"), std::string::npos);
  // As many short lines as no text gives.
  std::string lines;
  while (lines.size() < size_t(200) << 20) lines += std::string(99'999, ' ') + "\n";
  spit(dir / "bomb.jsonl.zst", compress(lines));
  EXPECT_NE(refusal("bomb.jsonl.zst").find("refused as hostile"), std::string::npos);
}

TEST(TextReader, AReadThatFailsIsNoEnd) {
  TempDir dir;
  std::filesystem::create_symlink("/proc/self/mem", dir / "a.jsonl");  // its first page cannot be read
  TextReader reader({dir / "a.jsonl"}, true);
  EXPECT_THROW(read_all(reader), IoError);
}

TEST(TextReader, DamagedFilesAreErrors) {
  TempDir dir;
  const std::string whole = compress(jsonl({babble(50000, 2)}));
  for (size_t n : {size_t(1), whole.size() / 2, whole.size() - 1}) {
    spit(dir / "a.jsonl.zst", whole.substr(0, n));
    TextReader reader({dir / "a.jsonl.zst"}, true);
    EXPECT_THROW(read_all(reader), DataError) << n;
  }
  spit(dir / "a.jsonl.zst", "no" + whole);
  TextReader other({dir / "a.jsonl.zst"}, true);
  try {
    read_all(other);
    ADD_FAILURE();
  } catch (const DataError& e) {
    EXPECT_NE(std::string(e.what()).find("damaged zstd data"), std::string::npos) << e.what();
  }
  spit(dir / "latin.txt", "caf\xE9");
  TextReader latin({dir / "latin.txt"});
  EXPECT_THROW(read_all(latin), DataError);
  spit(dir / "a.csv", "x");
  EXPECT_THROW(TextReader({dir / "a.csv"}), UsageError);
  EXPECT_THROW(TextReader({dir / "absent.txt"}), MissingError);
}

TEST(TextReader, FilesThatChangeOrAreNoFiles) {
  TempDir dir;
  const std::string path = spit(dir / "a.jsonl", R"({"text":"one"})");
  std::string text;
  TextReader gone({path}), folder({path}), half({path});
  ASSERT_TRUE(half.next(&text));
  EXPECT_EQ(half.bytes_read(), half.total_bytes());
  std::filesystem::remove(path);
  EXPECT_THROW(gone.next(&text), MissingError);
  std::filesystem::create_directory(path);
  EXPECT_THROW(folder.next(&text), IoError);
  ASSERT_EQ(::mkfifo((dir / "pipe.txt").c_str(), 0600), 0);
  EXPECT_THROW(TextReader({dir / "pipe.txt"}), MissingError);
}

}  // namespace
}  // namespace mmfree
