#include <gtest/gtest.h>

#include "core/error.h"
#include "core/system/utf8.h"
#include "data/text/tokenizer.h"
#include "tests/support/corpus.h"

namespace mmfree {
namespace {

using testing_data::babble;
using testing_data::small_tokenizer;

std::string random_text(unsigned seed) {
  static const std::string parts[] = {"a",
                                      " ",
                                      "  ",
                                      "\n",
                                      "\r\n",
                                      "\t",
                                      "\x01",
                                      std::string(1, '\0'),
                                      "\x7f",
                                      "Ω",
                                      "日",
                                      "😀",
                                      "👩‍👩‍👧",
                                      "e\u0301",
                                      "\xF4\x8F\xBF\xBF",
                                      "<s>",
                                      "<0x0A>",
                                      "kalo ",
                                      "12",
                                      "é",
                                      "\xEF\xBF\xBD",
                                      "\u2585"};
  std::mt19937 random(seed);
  std::string text;
  for (unsigned n = random() % 60; n > 0; --n) text += parts[random() % std::size(parts)];
  return text;
}

void expect_exact(const Tokenizer& t, const std::string& text) {
  const std::vector<int32_t> ids = t.encode(text);
  ASSERT_EQ(t.decode(ids), text);
  int64_t bytes = 0;
  StreamDecoder stream(t);
  std::string streamed;
  for (int32_t id : ids) {
    bytes += t.byte_length(id);
    const std::string part = stream.push(id);
    EXPECT_EQ(find_invalid_utf8(part), std::string::npos);
    streamed += part;
  }
  EXPECT_EQ(streamed + stream.flush(), text);
  EXPECT_EQ(bytes, int64_t(text.size()) + (t.adds_dummy_prefix() && !text.empty() ? 1 : 0)) << text;
}

class TokenizerTypes : public testing::TestWithParam<const char*> {};

TEST_P(TokenizerTypes, RoundTripIsExact) {
  TempDir dir;
  const Tokenizer t = small_tokenizer(dir, GetParam());
  EXPECT_EQ(t.vocab_size(), 400);
  EXPECT_EQ(t.unk_id(), 0);
  EXPECT_EQ(t.bos_id(), 1);
  EXPECT_EQ(t.eos_id(), 2);
  EXPECT_EQ(t.pad_id(), -1);
  expect_exact(t, babble(500, 8));
  for (unsigned seed = 0; seed < 400; ++seed) expect_exact(t, random_text(seed));
  EXPECT_LT(t.encode(babble(500, 8)).size(), babble(500, 8).size() / 2);
}
INSTANTIATE_TEST_SUITE_P(All, TokenizerTypes, testing::Values("bpe", "unigram"));

TEST(Tokenizer, LongTextsAreEncodedInPartsWithoutSeams) {
  TempDir dir;
  const Tokenizer t = small_tokenizer(dir);
  const std::string text = babble(120000, 9);
  ASSERT_GT(text.size(), size_t(600000));
  expect_exact(t, text);
  std::vector<int32_t> by_line;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at + 1), text.size());
    const std::vector<int32_t> ids = t.encode(text.substr(at, end - at));
    by_line.insert(by_line.end(), ids.begin() + (at > 0), ids.end());
    at = end;
  }
  EXPECT_EQ(t.encode(text), by_line);
}

TEST(Tokenizer, StreamEqualsDecodeForAnyIds) {
  TempDir dir;
  const Tokenizer t = small_tokenizer(dir);
  std::mt19937 random(3);
  for (int round = 0; round < 2000; ++round) {
    std::vector<int32_t> ids(random() % 12);
    // Half of the ids are byte pieces, so that broken characters of every kind occur.
    for (int32_t& id : ids) id = int32_t(random() % 2 ? random() % 259 : random() % 400);
    StreamDecoder stream(t);
    std::string streamed;
    for (int32_t id : ids) streamed += stream.push(id);
    ASSERT_EQ(streamed + stream.flush(), t.decode(ids)) << testing::PrintToString(ids);
  }
}

TEST(Tokenizer, TrainingIsDeterministicAndLoads) {
  TempDir dir;
  const Tokenizer a = small_tokenizer(dir), b = small_tokenizer(dir);
  EXPECT_EQ(a.serialized(), b.serialized());
  const Tokenizer c = Tokenizer::load(dir / "bpe.model");
  EXPECT_EQ(c.hash(), a.hash());
  EXPECT_EQ(c.hash().size(), 16u);
  EXPECT_EQ(c.encode("kalo mi"), a.encode("kalo mi"));
  EXPECT_EQ(c.piece(2), "</s>");
  EXPECT_EQ(c.byte_length(2), 0);
}

TEST(Tokenizer, TrainingUsesLongLinesAndLimits) {
  TempDir dir;
  std::string line = babble(30000, 7);
  for (char& c : line)
    if (c == '\n') c = ' ';
  TokenizerTraining training;
  training.inputs = {spit(dir / "line.txt", line + std::string(10000, 'w'))};
  training.output = dir / "a.model";
  training.vocab_size = 400;
  const Tokenizer t = Tokenizer::train(training);
  EXPECT_LT(t.encode(line).size(), line.size() / 2);
  EXPECT_LT(t.encode(std::string(256, 'w')).size(), 100u);  // a word longer than any limit has been learnt from

  training.limit_bytes = 100;
  try {
    Tokenizer::train(training);
    ADD_FAILURE() << "made";
  } catch (const UsageError& e) {
    EXPECT_STREQ(e.what(),
                 "tokenizer: no vocabulary of 400 pieces can be made of this text: Vocabulary size too high (400). "
                 "Please set it to a value <= 361.");
  }
  training.inputs = {spit(dir / "empty.txt", "")};
  EXPECT_THROW(Tokenizer::train(training), DataError);
  training.inputs = {dir / "absent.txt"};
  EXPECT_THROW(Tokenizer::train(training), MissingError);
}

TEST(Tokenizer, IdsOutsideTheVocabularyAreErrors) {
  TempDir dir;
  const Tokenizer t = small_tokenizer(dir);
  for (int32_t id : {-1, 400, INT32_MAX}) {
    EXPECT_THROW(t.piece(id), DataError);
    EXPECT_THROW(t.decode(std::vector{id}), DataError);
    EXPECT_THROW(StreamDecoder(t).push(id), DataError);
  }
}

std::string field(int number, const std::string& bytes) {
  std::string out(1, char(number << 3 | 2));
  for (size_t n = bytes.size();; n >>= 7) {
    out += char(n < 128 ? n : (n & 127) | 128);
    if (n < 128) break;
  }
  return out + bytes;
}

TEST(Tokenizer, HostileModelsAreRefused) {
  TempDir dir;
  const std::string good = small_tokenizer(dir).serialized();
  for (size_t n = 0; n < good.size(); n += 37) {  // truncated inside a piece or before the normaliser
    try {
      Tokenizer::from_bytes(good.substr(0, n));
    } catch (const DataError&) {
    }
  }
  EXPECT_THROW(Tokenizer::from_bytes(""), DataError);
  EXPECT_THROW(Tokenizer::from_bytes(std::string(1000, 'z')), DataError);
  EXPECT_THROW(Tokenizer::from_bytes(good + field(1, field(1, std::string(513, 'q')))), DataError);
  EXPECT_THROW(Tokenizer::from_bytes(good + field(1, field(1, "\xFF"))), DataError);
  EXPECT_THROW(Tokenizer::from_bytes(good + field(1, field(1, ""))), DataError);
  EXPECT_THROW(Tokenizer::from_bytes(good + field(1, field(1, "</s>"))), DataError);
  EXPECT_THROW(Tokenizer::from_bytes(good + field(3, field(2, "a character table"))), DataError);
  EXPECT_THROW(Tokenizer::from_bytes(good + std::string("\x1a\x02\x20\x01", 4)), DataError);  // spaces removed
  EXPECT_THROW(Tokenizer::from_bytes(std::string(33 << 20, '\0')), DataError);
  EXPECT_NO_THROW(Tokenizer::from_bytes(good + field(1, field(1, std::string(512, 'q')))));
  EXPECT_THROW(Tokenizer::load(dir / "absent.model"), MissingError);
}

TEST(Tokenizer, LongTextsWithoutALineToEndAt) {
  TempDir dir;
  const Tokenizer t = small_tokenizer(dir);
  const std::string words = std::string(300000, 'k');
  expect_exact(t, words);
  expect_exact(t, words + "\n\n\n" + words + "\n");
  expect_exact(t, std::string((1 << 18) - 1, 'k') + "\n\n\nmi");
}

TEST(Tokenizer, WithoutADummyPrefixNothingIsTakenAway) {
  TempDir dir;
  const std::string bytes = small_tokenizer(dir).serialized() + field(3, std::string("\x18\0", 2));
  const Tokenizer t = Tokenizer::from_bytes(bytes);
  EXPECT_FALSE(t.adds_dummy_prefix());
  expect_exact(t, " kalo mi");
  expect_exact(t, std::string(300000, 'k') + "\n kalo mi");
}

TEST(Tokenizer, TrainingReadsBlankLinesAndCutsAtCharacters) {
  TempDir dir;
  std::string wide;
  for (int i = 0; i < 3000; ++i) wide += "日";
  TokenizerTraining training;
  training.inputs = {spit(dir / "a.txt", babble(20000, 7) + "\n\n\n" + wide + "\nx" + wide), spit(dir / "b.txt", wide)};
  training.output = dir / "a.model";
  training.vocab_size = 400;
  const Tokenizer whole = Tokenizer::train(training);
  EXPECT_LT(whole.encode(wide).size(), 1000u) << "the parts of the long line have been learnt from";

  training.inputs.pop_back();
  training.limit_bytes = babble(20000, 7).size() + 3 + 1;  // inside the first character of the long line
  const Tokenizer cut = Tokenizer::train(training);
  EXPECT_GT(cut.encode(wide).size(), 3000u) << "bytes, for it has never seen the character";
}

TEST(Tokenizer, TrainingSaysWhatItCannotDo) {
  TempDir dir;
  TokenizerTraining good;
  good.inputs = {spit(dir / "a.txt", babble(2000, 7)), spit(dir / "b.jsonl", "{broken")};
  EXPECT_THROW(Tokenizer::train(good), DataError) << "the second file, when training is under way";
  std::vector<TokenizerTraining> bad(5, good);
  bad[0].type = "word";
  bad[1].vocab_size = 261;
  bad[2].vocab_size = (1 << 20) + 1;
  bad[3].character_coverage = 0;
  bad[4].character_coverage = 1.5;
  for (const TokenizerTraining& t : bad) EXPECT_THROW(Tokenizer::train(t), UsageError);
}

TEST(Tokenizer, TrainingTakesTheCoverageToItsLastDigit) {
  TempDir dir;
  TokenizerTraining training;
  training.inputs = {spit(dir / "a.txt", babble(20000, 7))};
  training.vocab_size = 300;
  for (const double coverage : {0.9995, 0.9999995}) {
    training.character_coverage = coverage;
    const auto stored = float(coverage);
    std::string as_stored(1 + sizeof stored, '\x55');  // field 10 of the trainer's settings, a float
    std::memcpy(&as_stored[1], &stored, sizeof stored);
    EXPECT_NE(Tokenizer::train(training).serialized().find(as_stored), std::string::npos) << coverage;
  }
}

TEST(Tokenizer, TooManyPiecesAreRefused) {
  std::string bytes;
  for (int i = 0; i <= 1 << 20; ++i) bytes += field(1, field(1, concat(i)));
  EXPECT_THROW(Tokenizer::from_bytes(bytes), DataError);
}

TEST(Utf8, CharactersAndDamage) {
  EXPECT_EQ(utf8_char(""), 0);
  EXPECT_EQ(utf8_char("a"), 1);
  EXPECT_EQ(utf8_char("é"), 2);
  EXPECT_EQ(utf8_char("日"), 3);
  EXPECT_EQ(utf8_char("😀"), 4);
  EXPECT_EQ(utf8_char("\xF0\x9F\x98"), -1);
  for (const char* bad : {"\x80", "\xC1\x81", "\xE0\x80\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xF5", "\xFF",
                          "\xC3"
                          "a"})
    EXPECT_EQ(utf8_char(bad), 0) << bad;
  EXPECT_EQ(find_invalid_utf8("ab\xFF"), 2u);
  EXPECT_EQ(find_invalid_utf8("ab\xC3"), 2u);
}

}  // namespace
}  // namespace mmfree
