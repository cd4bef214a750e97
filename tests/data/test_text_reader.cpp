#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#include <algorithm>
#include <memory>
#include <thread>

#include "core/error.h"
#include "data/text/text_reader.h"
#include "tests/support/corpus.h"

namespace mmfree {
namespace {

using testing_data::babble;
using testing_data::compress;
using testing_data::gzip;
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
  for (Document d; reader.next(&d);) out.push_back(std::get<std::string>(d.content));
  return out;
}

TextOptions skipping() {
  TextOptions options;
  options.skip_malformed = true;
  return options;
}

/// What reading to the end says, or "" if it says nothing.
std::string complaint(const std::vector<std::string>& entries, const TextOptions& options = {}) {
  try {
    TextReader reader(entries, options);
    for (Document d; reader.next(&d);) continue;
    return "";
  } catch (const Error& e) {
    return e.what();
  }
}

/// Standard input from a file, for as long as it lives.
class StandardInput {
 public:
  explicit StandardInput(const std::string& path) : before_(::dup(STDIN_FILENO)) {
    const int in = ::open(path.c_str(), O_RDONLY);
    ::dup2(in, STDIN_FILENO), ::close(in);
  }
  ~StandardInput() { ::dup2(before_, STDIN_FILENO), ::close(before_); }

 private:
  int before_;
};

TEST(LineReader, ReadsStandardInput) {
  TempDir dir;
  spit(dir / "in", "one\n\nthree");
  const StandardInput in(dir / "in");
  std::vector<std::string> lines;
  {
    LineReader reader("-");
    for (std::string line; reader.next(&line);) lines.push_back(line);
    EXPECT_EQ(reader.bytes_read(), 10);
  }
  EXPECT_EQ(lines, (std::vector<std::string>{"one", "", "three"}));
  EXPECT_GE(::fcntl(STDIN_FILENO, F_GETFD), 0) << "closed";
}

TEST(TextReader, AllFormsInOrder) {
  TempDir dir;
  const std::vector<std::string> texts = {"one\n\"two\" \\ é😀", "", babble(100000, 1), "last"};
  spit(dir / "a.txt", "a book\n");
  spit(dir / "b.jsonl", jsonl(texts) + "\n  \r\n" + R"({"text":"no final line break"})");
  spit(dir / "c.jsonl.zst", compress(jsonl(texts)) + compress(jsonl({"second frame"})));
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
    TextReader strict({dir / "a.jsonl"}), lenient({dir / "a.jsonl"}, skipping());
    try {
      read_all(strict);
      ADD_FAILURE() << bad.substr(0, 40);
    } catch (const DataError& e) {
      EXPECT_NE(std::string(e.what()).find("a.jsonl:2:"), std::string::npos) << e.what();
    }
    EXPECT_EQ(read_all(lenient), (std::vector<std::string>{"good", "more"}));
    EXPECT_EQ(skipped_text(lenient.skipped()).substr(0, 16), "1 malformed row ");
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
    TextReader reader({dir / name}, skipping());
    try {
      return concat(read_all(reader).size(), " documents");
    } catch (const DataError& e) {
      return std::string(e.what());
    }
  };
  const int64_t most = TextReader::kMaxDocumentBytes;
  const std::string front = "{\"text\":\"", back = "\"}\n";
  spit(dir / "long.jsonl", front + std::string(size_t(most) + 1, 'x') + back);
  EXPECT_NE(refusal("long.jsonl").find("long.jsonl:1: byte 1: the document has more than"), std::string::npos);
  for (const char* name : {"line.jsonl", "book.txt"}) {
    spit(dir / name, "");
    std::filesystem::resize_file(dir / name, uintmax_t(2 * most) + 1);
  }
  EXPECT_NE(refusal("line.jsonl").find("a line is longer than"), std::string::npos);
  EXPECT_NE(refusal("book.txt").find("the document has more than"), std::string::npos);
  // As many short lines as no text gives.
  std::string lines;
  while (lines.size() < size_t(200) << 20) lines += std::string(99'999, ' ') + "\n";
  spit(dir / "bomb.jsonl.zst", compress(lines));
  EXPECT_NE(refusal("bomb.jsonl.zst").find("refused as hostile"), std::string::npos);
}

TEST(TextReader, AReadThatFailsIsNoEnd) {
  TempDir dir;
  std::filesystem::create_symlink("/proc/self/mem", dir / "a.jsonl");  // its first page cannot be read
  TextReader reader({dir / "a.jsonl"}, skipping());
  EXPECT_THROW(read_all(reader), IoError);
}

TEST(TextReader, DamagedFilesAreErrors) {
  TempDir dir;
  const std::string whole = compress(jsonl({babble(50000, 2)}));
  for (size_t n : {size_t(1), whole.size() / 2, whole.size() - 1}) {
    spit(dir / "a.jsonl.zst", whole.substr(0, n));
    TextReader reader({dir / "a.jsonl.zst"}, skipping());
    EXPECT_THROW(read_all(reader), DataError) << n;
  }
  spit(dir / "a.jsonl.zst", "no" + whole);
  TextReader other({dir / "a.jsonl.zst"}, skipping());
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
  Document text;
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

TEST(TextReader, EveryFormInEveryCompression) {
  TempDir dir;
  const std::vector<std::string> texts = {"one é😀", babble(100000, 1), "", "last"};
  const std::string array = "\n [" + jsonl({texts[0]}) + "," + jsonl({texts[1]}) + ",\t" + jsonl({texts[2]}) + "\n,\n" +
                            jsonl({texts[3]}) + "] \n";
  const std::vector<std::pair<std::string, std::string>> forms = {
      {".jsonl", jsonl(texts)}, {".json", array}, {".json", jsonl(texts)}, {".json", "[]" + array + "[ ]"}};
  for (const auto& [suffix, bytes] : forms)
    for (const auto& [name, stored] : {std::pair{suffix, bytes},
                                       {suffix + ".zst", compress(bytes.substr(0, 9)) + compress(bytes.substr(9))},
                                       {suffix + ".gz", gzip(bytes.substr(0, 9)) + gzip(bytes.substr(9))},
                                       {suffix + ".GZ", gzip(bytes)}}) {
      TextReader reader({spit(dir / ("a" + name), stored)});
      EXPECT_EQ(read_all(reader), texts) << name << ": " << bytes.substr(0, 20);
      EXPECT_EQ(reader.bytes_read(), reader.total_bytes());
    }
  for (const auto& [name, stored] :
       {std::pair{"b.TXT", texts[1]}, {"b.txt.zst", compress(texts[1])}, {"b.txt.gz", gzip(texts[1])}}) {
    TextReader reader({spit(dir / name, stored)});
    EXPECT_EQ(read_all(reader), std::vector{texts[1]}) << name;
  }
}

TEST(TextReader, StandardInputIsRecognisedByItsFirstBytes) {
  TempDir dir;
  const std::vector<std::string> texts = {"one", "two"};
  for (const std::string& stored :
       {jsonl(texts), compress(jsonl(texts)), gzip(jsonl(texts)), std::string("\n" + jsonl(texts))}) {
    const StandardInput in(spit(dir / "in", stored));
    TextReader reader({"-"});
    EXPECT_EQ(read_all(reader), texts);
    EXPECT_EQ(reader.bytes_read(), int64_t(stored.size()));
  }
  const StandardInput in(spit(dir / "in", "{}"));
  EXPECT_EQ(complaint({"-"}).find("standard input:1: byte 1: no \"text\""), 0u);
}

/// A mark that arrives byte by byte is still one.
TEST(TextReader, StandardInputInPieces) {
  TempDir dir;
  for (const std::string& stored : {compress(jsonl({"one"})), gzip(jsonl({"one"}))}) {
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    const Fd from(ends[0]);
    const std::jthread writer([&, to = ends[1]](const std::stop_token& given_up) {
      for (const char c : stored) {
        EXPECT_EQ(::write(to, &c, 1), 1);
        for (int left = 1; left > 0 && !given_up.stop_requested();) {
          ASSERT_EQ(::ioctl(from.get(), FIONREAD, &left), 0);
          std::this_thread::yield();
        }
      }
      ::close(to);
    });
    const StandardInput in("/dev/fd/" + std::to_string(from.get()));
    TextReader reader({"-"});
    EXPECT_EQ(read_all(reader), std::vector<std::string>{"one"});
  }
}

TEST(TextReader, WhoWaitsForStandardInputCanBeStopped) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const Fd from(ends[0]), to(ends[1]);
  const StandardInput in("/dev/fd/" + std::to_string(from.get()));
  TextOptions options;
  int calls = 0;
  options.check_stop = [&] { MMFREE_CHECK(IoError, ++calls < 3, "stopped"); };
  EXPECT_EQ(complaint({"-"}, options), "stopped");
}

/// The frame's header of `zstd --long=31`, with a window of 2 GiB, takes no more memory than the frame needs.
TEST(TextReader, AnyWindowOfZstd) {
  TempDir dir;
  const std::string bytes = jsonl({babble(30000, 1)});
  for (int window : {27, 28, 31}) {
    const std::unique_ptr<ZSTD_CCtx, size_t (*)(ZSTD_CCtx*)> context(ZSTD_createCCtx(), ZSTD_freeCCtx);
    // A fast strategy with small tables: only the window is large.
    for (const auto& [parameter, value] :
         {std::pair{ZSTD_c_windowLog, window}, {ZSTD_c_strategy, 1}, {ZSTD_c_hashLog, 10}, {ZSTD_c_contentSizeFlag, 0}})
      ASSERT_FALSE(ZSTD_isError(ZSTD_CCtx_setParameter(context.get(), parameter, value)));
    std::string stored(ZSTD_compressBound(bytes.size()), '\0');
    ZSTD_outBuffer to{stored.data(), stored.size(), 0};
    ZSTD_inBuffer from{bytes.data(), bytes.size(), 0}, none{nullptr, 0, 0};
    ASSERT_FALSE(ZSTD_isError(ZSTD_compressStream2(context.get(), &to, &from, ZSTD_e_continue)));
    ASSERT_EQ(ZSTD_compressStream2(context.get(), &to, &none, ZSTD_e_end), 0u);
    stored.resize(to.pos);
    ASSERT_EQ(int(static_cast<unsigned char>(stored[5])) >> 3, window - 10) << "the frame's header names the window";
    EXPECT_EQ(complaint({spit(dir / "a.jsonl.zst", stored)}), "") << window;
  }
}

TEST(TextReader, DamagedGzipIsAnError) {
  TempDir dir;
  const std::string whole = gzip(jsonl({babble(50000, 2)}));
  for (size_t n : {size_t(1), size_t(15), whole.size() / 2, whole.size() - 1})
    EXPECT_NE(complaint({spit(dir / "a.jsonl.gz", whole.substr(0, n))}).find("truncated"), std::string::npos) << n;
  std::string changed = whole;
  changed[whole.size() - 6] ^= 1;  // of the checksum
  for (const std::string& bad : {"no" + whole, whole + "rest", changed})
    EXPECT_NE(complaint({spit(dir / "a.jsonl.gz", bad)}).find("a.jsonl.gz: damaged gzip data: "), std::string::npos);
}

TEST(TextReader, MalformedRowsAreCountedByCause) {
  TempDir dir;
  spit(dir / "a.jsonl", "{\"text\":null}\n{\"text\":\"\xE9\"}\n{\"text\":null,\"b\":1}\n{}\n");
  TextReader reader({dir / "a.jsonl"}, skipping());
  EXPECT_TRUE(read_all(reader).empty());
  EXPECT_EQ(reader.skipped(), (SkippedRows{{"\"text\" is null", 2}, {"not valid UTF-8", 1}, {"no \"text\"", 1}}));
  EXPECT_EQ(skipped_text(reader.skipped()),
            "4 malformed rows (2: \"text\" is null, 1: no \"text\", 1: not valid UTF-8)");
  EXPECT_EQ(skipped_text({}), "");
}

TEST(TextReader, AMalformedRowNamesItsPlaceAndTheWayOut) {
  TempDir dir;
  const std::string advice = "; correct it, or pass over such rows with --skip-malformed";
  spit(dir / "a.jsonl", jsonl({"x"}) + "\n{\"text\": NaN}\n");
  EXPECT_EQ(complaint({dir / "a.jsonl"}), dir / "a.jsonl:3: byte 10: NaN and Infinity are not JSON" + advice);
  // Elements of an array may begin inside a line and have several.
  spit(dir / "b.json", "\xEF\xBB\xBF[{\"text\": \"x\"},  {\n  \"text\":\n  3}]");
  EXPECT_EQ(complaint({dir / "b.json"}), dir / "b.json:3: byte 3: \"text\" is a number" + advice);
  spit(dir / "b.json", "\n [{\"text\": \"x\"}, {\"text\": 3}]");
  EXPECT_EQ(complaint({dir / "b.json"}), dir / "b.json:2: byte 27: \"text\" is a number" + advice);
  TextReader lenient({dir / "b.json"}, skipping());
  EXPECT_EQ(read_all(lenient), std::vector<std::string>{"x"});
}

TEST(TextReader, ArraysThatDoNotHoldTogetherAreNeverSkipped) {
  TempDir dir;
  for (const auto& [bytes, what] : {std::pair{R"([{"text":"a"})", "ends inside an array"},
                                    {R"([{"text":"a"} {"text":"b"}])", "expected ',' or ']'"},
                                    {R"([{"text":"a"},])", "expected a value, found ']'"},
                                    {R"([,{"text":"a"}])", "expected a value, found ','"},
                                    {R"([{"text":"a"},)", "expected a value, found the end"},
                                    {R"([{"text":"a"}}])", "expected ',' or ']'"},
                                    {R"({"text":"a"}])", "expected a value, found ']'"},
                                    {R"({"text":"a")", "ends inside a value"},
                                    {R"({"text":"a)", "ends inside a value"}})
    EXPECT_NE(complaint({spit(dir / "a.json", bytes)}, skipping()).find(what), std::string::npos) << bytes;
  spit(dir / "a.json", R"({"text":"]}\"\\"}{"text":"\\"} [{"text":"x\"y"}] "text" 1 [[{"text":"inner"}]])");
  TextReader reader({dir / "a.json"}, skipping());
  EXPECT_EQ(read_all(reader), (std::vector<std::string>{"]}\"\\", "\\", "x\"y"}));
  EXPECT_EQ(reader.skipped(), (SkippedRows{{"not an object", 3}}));
}

TEST(TextReader, AnArrayIsReadElementByElement) {
  TempDir dir;
  const std::string element = R"({"text":")" + std::string(int64_t(1) << 20, 'k') + R"("},)";
  std::string bytes = "[";
  for (int i = 0; i < 140; ++i) bytes += element;  // more than an element may have
  bytes.back() = ']';
  spit(dir / "a.json", bytes);
  EXPECT_EQ(complaint({dir / "a.json"}), "");
  spit(dir / "a.json", "[\"" + std::string(size_t(ElementReader::kMaxElementBytes), 'k') + "\"]");
  EXPECT_NE(complaint({dir / "a.json"}, skipping()).find("longer than"), std::string::npos);
}

TEST(TextReader, WhatIsPassedOverIsNamedAndStrictRefusesIt) {
  TempDir dir;
  std::filesystem::create_directory(dir / "sub");
  spit(dir / "C.JSONL", jsonl({"c"})), spit(dir / "a.jsonl", jsonl({"a"})),
      spit(dir / "b.jsonl.gz", gzip(jsonl({"b"})));
  spit(dir / "sub/e.jsonl", jsonl({"e"}));
  TextOptions strict;
  strict.strict = true;
  EXPECT_EQ(complaint({dir.path()}, strict), "");
  spit(dir / "d.parquet", "x");
  TextReader reader({dir.path()});
  EXPECT_EQ(read_all(reader), (std::vector<std::string>{"c", "a", "b", "e"}));
  EXPECT_EQ(passed_over_text(reader.passed_over()), "passed over 1 file of another type: " + dir / "d.parquet");
  EXPECT_NE(complaint({dir.path()}, strict).find("d.parquet; remove them, or leave out --strict"), std::string::npos);
  for (const auto& [bytes, what] : {std::pair{"{\"text\":\"a\"}\n\n", ":2: byte 1: a blank line"},
                                    {"{\"text\":\"\"}\n", ":1: byte 1: an empty document"},
                                    {"{\"prompt\":\"a\",\"completion\":\"\"}\n", ":1: byte 1: an empty document"}}) {
    spit(dir / "a.jsonl", bytes);
    EXPECT_EQ(complaint({dir / "a.jsonl"}), "");
    EXPECT_EQ(complaint({dir / "a.jsonl"}, strict),
              concat(dir / "a.jsonl", what, "; remove it, or leave out --strict"));
  }
  EXPECT_NE(complaint({spit(dir / "e.txt", "")}, strict).find("e.txt: is empty"), std::string::npos);
  strict.skip_malformed = true;
  EXPECT_THROW(TextReader({dir / "a.jsonl"}, strict), UsageError);
}

}  // namespace
}  // namespace mmfree
