// tokenizer.json: our tokenizer gives the ids that AutoTokenizer gave from the file that we write
// (tests/golden/tokenizers), and what the format cannot say is refused by name.
#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <sstream>

#include "data/text/tokenizer_model.h"
#include "tests/support/corpus.h"
#include "tests/support/program.h"
#include "tests/support/tiny_model.h"
#include "train/formats/hf_folder.h"
#include "train/formats/tokenizer_json.h"

namespace mmfree {
namespace {

using nlohmann::json;
using testing_data::small_tokenizer;

Framing framing_called(const std::string& name) {
  for (const Framing f : kAllFramings)
    if (name == name_of(f)) return f;
  ADD_FAILURE() << name;
  return Framing::none;
}

class StoredTokenizer : public testing::TestWithParam<const char*> {
 protected:
  const std::string folder = source_dir() + "/tests/golden/tokenizers/" + GetParam() + "/";
  const Tokenizer tokenizer = Tokenizer::load(folder + "tokenizer.model");
};

TEST_P(StoredTokenizer, GivesTheIdsAndTextsOfAutoTokenizer) {
  std::istringstream lines(slurp(folder + "ids.jsonl"));
  std::string line;
  std::getline(lines, line);
  const json head = json::parse(line);
  const DocumentEncoder encoder(tokenizer, framing_called(head["framing"]));
  const std::vector<int32_t> opening = encoder.opening();
  EXPECT_EQ(opening, head["opening"].get<std::vector<int32_t>>());
  int texts = 0;
  for (; std::getline(lines, line); ++texts) {
    const json row = json::parse(line);
    const std::string text = row["text"];
    std::vector<int32_t> ids = row["ids"];
    ASSERT_EQ(tokenizer.encode(text), ids) << row["text"];
    ASSERT_EQ(tokenizer.decode(ids), row.value("decoded", text)) << row["text"];
    ids.insert(ids.begin(), opening.begin(), opening.end());
    ASSERT_EQ(encoder.prompt(text), ids) << row["text"];
  }
  EXPECT_EQ(texts, 1000);
}

TEST_P(StoredTokenizer, IsWrittenAsAutoTokenizerReadIt) {
  const std::string ids = slurp(folder + "ids.jsonl");
  const json head = json::parse(ids.substr(0, ids.find('\n')));
  const HfTokenizer made = hf_tokenizer(tokenizer, framing_called(head["framing"]), 2048);
  EXPECT_EQ(made.refusal, "");
  EXPECT_EQ(made.files.size(), 2u);
  for (const auto& [name, bytes] : made.files) EXPECT_EQ(bytes, slurp(folder + name)) << name;
}
INSTANTIATE_TEST_SUITE_P(All, StoredTokenizer, testing::Values("own", "unknown", "symbols"));

/// A protobuf field of bytes, of at most 127 of them.
std::string field(int number, const std::string& bytes) {
  return std::string{char(number << 3 | 2), char(bytes.size())} + bytes;
}

/// A further piece of a SentencePiece model.
std::string piece(const std::string& text, PieceType type = PieceType::normal, float score = -1e6f) {
  std::string number(4, '\0');
  std::memcpy(number.data(), &score, 4);
  return field(1, field(1, text) + "\x15" + number + "\x18" + char(int(type)));
}

const std::string kNoPrefix = field(3, std::string("\x18\0", 2));

std::string refusal(const std::string& model) {
  const HfTokenizer made = hf_tokenizer(Tokenizer::from_bytes(model), Framing::bos, 64);
  const json written = json::parse(made.files.at("tokenizer.json"));
  EXPECT_EQ(written["version"], made.refusal.empty() ? "1.0" : made.refusal);
  EXPECT_EQ(written["model"]["vocab"].empty(), !made.refusal.empty());
  return made.refusal;
}

TEST(TokenizerJson, WhatTheFormatCannotSayIsRefusedByName) {
  const TempDir dir;
  const std::string bpe = small_tokenizer(dir).serialized();
  EXPECT_EQ(refusal(bpe), "");
  const std::pair<std::string, std::string> cases[] = {
      {small_tokenizer(dir, "unigram").serialized(), "in a unigram model, sums of scores in single precision"},
      {bpe + field(2, "\x18\x03"), "it is a word model"},
      {bpe + piece("ka.", PieceType::unused), "piece 'ka.' is marked as unused"},
      {bpe + piece("<sep>", PieceType::user_defined), "piece '<sep>' is a user-defined symbol of several characters"},
      {bpe + piece("Z", PieceType::control), "piece 'Z' is a control symbol of one character"},
      {bpe + piece("<0xab>"), "piece '<0xab>' looks like a byte piece and is none"},
      {bpe + piece("kZ"), "piece 'kZ' is made of 'Z', which is no piece"},
      {bpe + piece("kk") + piece("qq"), "pieces 'kk' and 'qq' have the same score"},
      {bpe + piece("kk") + piece("kkk") + piece("kkkk"), "pieces 'kk' and 'kkk' have the same score"},
      {bpe + piece("kk") + piece("kkkk") + piece("kkl", PieceType::normal, 1), "pieces 'kk' and 'kkkk' have the same"},
      {bpe + piece("kk") + piece("kkkk") + piece("kkk", PieceType::normal, -2e6f), "pieces 'kk' and 'kkkk' have the"},
  };
  for (const auto& [model, why] : cases) {
    const std::string got = refusal(model);
    EXPECT_EQ(got.find("the format of tokenizer.json cannot give this tokenizer's ids: " + why), 0u)
        << "expected " << why << "\ngot      " << got;
    EXPECT_TRUE(got.ends_with("; read tokenizer.model with the sentencepiece package")) << got;
  }
}

TEST(TokenizerJson, RunsOfACharacterMayHaveOneScore) {
  const TempDir dir;
  const std::string bpe = small_tokenizer(dir).serialized();
  EXPECT_EQ(refusal(bpe + piece("kk") + piece("kkkk")), "");
  EXPECT_EQ(refusal(bpe + piece("kk") + piece("kkkk") + piece("kkk")), "");
  EXPECT_EQ(refusal(bpe + piece("<sep>", PieceType::user_defined) + kNoPrefix), "");
}

/// What the two files say of framing and special tokens.
struct Written {
  explicit Written(const HfTokenizer& made)
      : tokenizer(json::parse(made.files.at("tokenizer.json"))),
        config(json::parse(made.files.at("tokenizer_config.json"))) {}
  json tokenizer, config;
};

TEST(TokenizerJson, OpensATextAsTrainingDid) {
  const TempDir dir;
  const Tokenizer t = small_tokenizer(dir);
  for (const Framing framing : kAllFramings) {
    SCOPED_TRACE(name_of(framing));
    const Written w(hf_tokenizer(t, framing, 64));
    const json& rule = w.tokenizer["post_processor"];
    const std::vector<int32_t> opening = DocumentEncoder(t, framing).opening();
    ASSERT_EQ(rule.is_null(), opening.empty());
    if (!opening.empty()) {
      const std::string token = t.piece(opening[0]);
      EXPECT_EQ(rule["single"][0]["SpecialToken"]["id"], token);
      EXPECT_EQ(rule["single"].size(), 2u);  // nothing at the end: a prompt goes on
      EXPECT_EQ(rule["special_tokens"][token]["ids"], json(opening));
    }
    EXPECT_EQ(w.config.contains("add_bos_token"), framing != Framing::eos);
    EXPECT_EQ(w.config.value("add_bos_token", false), has_bos(framing));
    EXPECT_FALSE(w.config.value("add_eos_token", false));
    EXPECT_EQ(w.config["model_max_length"], 64);
  }
}

TEST(TokenizerJson, ExportsBringItAndAreReplaceable) {
  const TempDir dir;
  const std::string model = source_dir() + "/tests/golden/zeroshot/f32", out = dir / "out";
  const Tokenizer t = Tokenizer::load(model + "/tokenizer.model");
  for (const std::vector<std::string>& more : {std::vector<std::string>{}, {"--overwrite"}}) {
    std::vector<std::string> words = {"export", model, out, "--format", "hf"};
    words.insert(words.end(), more.begin(), more.end());
    Program p(words);
    ASSERT_EQ(p.wait(), 0) << p.err();
    EXPECT_EQ(p.err().find("AutoTokenizer"), std::string::npos);
    const HfData data = read_hf_data(model);
    const int64_t length = read_hf_config(out).max_position_embeddings;
    for (const auto& [name, bytes] : hf_tokenizer(t, data.framing, length).files)
      EXPECT_EQ(slurp(out + "/" + name), bytes) << name;
    EXPECT_NE(slurp(out + "/.mmfree-hf").find("tokenizer_config.json"), std::string::npos);
  }
  spit(out + "/tokenizer.json", "{}");
  Program changed({"export", model, out, "--format", "hf", "--overwrite"});
  EXPECT_EQ(changed.wait(), 73);
  EXPECT_NE(changed.err().find("tokenizer.json"), std::string::npos) << changed.err();
}

TEST(TokenizerJson, AnExportWarnsWhereAutoTokenizerStops) {
  const TempDir dir;
  const Tokenizer unigram = small_tokenizer(dir, "unigram");
  ModelConfig config = tiny_model_config();
  config.vocab_size = unigram.vocab_size();
  ParamStore params(parameter_specs(config), DType::f32);
  params.initialise(1);
  NamedShapes shapes;
  for (const ParamSpec& spec : parameter_specs(config)) shapes.emplace_back(spec.name, spec.shape);
  HfWriteOptions options;
  options.tokenizer_model = unigram.serialized();
  write_hf_folder(
      dir / "old", config, shapes, [&](const std::string& name) { return params[name].value(); }, options);
  Program p({"export", dir / "old", dir / "new", "--format", "hf"});
  EXPECT_EQ(p.wait(), 0) << p.err();
  EXPECT_NE(p.err().find("warning: AutoTokenizer stops at this folder: the format of tokenizer.json"),
            std::string::npos)
      << p.err();
  EXPECT_EQ(slurp(dir / "new/tokenizer.model"), unigram.serialized());
}

}  // namespace
}  // namespace mmfree
