// mmfree generate: many prompts, samples, stop texts and states by the program itself.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/support/program.h"
#include "tests/support/tiny_run.h"
#include "train/formats/ternary_file.h"
#include "train/inference/generate.h"

namespace mmfree {
namespace {

using nlohmann::json;

struct Files {
  TempDir dir;
  std::string model = dir / "m.mmfree", prompts = dir / "p.jsonl";
  std::vector<std::string> texts = {"ka lo", "", "é水 mi", "ka lo", "\"\\\n\t</s>"};
  Files() {
    write_ternary_file(model, tiny_model(tiny_model_config()), EmbeddingStore::f32);
    std::string lines;
    for (const std::string& t : texts) lines += json{{"prompt", t}}.dump() + "\n\n";
    spit(prompts, lines);
  }
};

const Files& files() {
  static const Files f;
  return f;
}

/// Runs generate, which must succeed.
std::string generated(std::vector<std::string> arguments, const std::string& input = "", std::string* err = nullptr) {
  arguments.insert(arguments.begin(), {"generate", files().model, "-n", "12", "--device", "cpu"});
  Program p(arguments, input);
  EXPECT_EQ(p.wait(), 0) << p.err();
  if (err) *err = p.err();
  return p.out();
}

std::vector<json> rows(const std::string& text) {
  std::vector<json> all;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) all.push_back(json::parse(line));
  return all;
}

TEST(GenerateCommand, AnswersManyPromptsInTheirOrder) {
  const Files& f = files();
  std::string err;
  const std::string once = generated({"-i", f.prompts, "--samples", "2", "--batch", "1"}, "", &err);
  EXPECT_EQ(err, "");
  EXPECT_EQ(generated({"-i", f.prompts, "--samples", "2", "--batch", "3"}), once);
  EXPECT_EQ(generated({"-i", "-", "--samples", "2"}, slurp(f.prompts)), once);
  const std::vector<json> all = rows(once), single = rows(generated({"-i", f.prompts}));
  ASSERT_EQ(all.size(), 2 * f.texts.size());
  ASSERT_EQ(single.size(), f.texts.size());
  for (size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(all[i]["prompt"], f.texts[i / 2]);
    EXPECT_EQ(all[i]["sample"], i % 2);
    EXPECT_TRUE(all[i]["end"] == "length" || all[i]["end"] == "eos") << all[i];
    if (all[i]["end"] == "length") EXPECT_EQ(all[i]["tokens"], 12);
    if (i % 2 == 0) EXPECT_EQ(all[i]["text"], single[i / 2]["text"]);
  }
  EXPECT_NE(all[0]["text"], all[1]["text"]);
  EXPECT_NE(all[0]["text"], all[6]["text"]) << "the same prompt in another place has other random numbers";
  EXPECT_EQ(rows(generated({"-p", "ka lo", "--json"}))[0]["text"], single[0]["text"]);
  EXPECT_EQ(generated({"-i", "-"}, ""), "");
}

TEST(GenerateCommand, GreedyTextIsThatOfTheWholeSequence) {
  const Files& f = files();
  const Model m = read_ternary_file(f.model);
  const std::vector<json> lines = rows(generated({"-i", f.prompts, "--temp", "0", "--ignore-eos"}));
  for (size_t i = 0; i < f.texts.size(); ++i) {
    const std::vector<int32_t> prompt = m.encoder().prompt(f.texts[i]);
    std::vector<int32_t> ids = prompt;
    StreamDecoder decoder(*m.tokenizer);
    for (int32_t id : prompt) decoder.push(id);
    std::string text;
    for (int step = 0; step < 12; ++step) {
      const Tensor logits = m.lm->logits(Tensor::from({int64_t(ids.size())}, ids.data()), 1);
      ids.push_back(most_likely(logits.data<float>() + logits.size() - logits.dim(1), logits.dim(1)));
      if (ids.back() < m.tokenizer->vocab_size()) text += decoder.push(ids.back());
    }
    EXPECT_EQ(lines[i]["text"], text + decoder.flush()) << i;
  }
}

TEST(GenerateCommand, StopTextsEndTexts) {
  const std::string whole = rows(generated({"-p", "ka", "--json", "--ignore-eos"}))[0]["text"];
  size_t at = whole.size() / 2;
  while (at && (whole[at] & 0xC0) == 0x80) --at;
  size_t end = at + 1;
  while (end < whole.size() && (whole[end] & 0xC0) == 0x80) ++end;
  const std::string stop = whole.substr(at, end - at), expected = whole.substr(0, whole.find(stop));
  const json row = rows(generated({"-p", "ka", "--json", "--ignore-eos", "--stop", "no such text", "--stop", stop}))[0];
  EXPECT_EQ(row["text"], expected);
  EXPECT_EQ(row["end"], "stop");
  EXPECT_EQ(generated({"-p", "ka", "--ignore-eos", "--stop", stop}), "ka" + expected + "\n");
}

TEST(GenerateCommand, StatesAreSavedAndGoneOnFrom) {
  const Files& f = files();
  const std::string state = f.dir / "s.state";
  std::string err;
  const std::string whole = generated({"-p", "ka lo"});
  EXPECT_EQ(generated({"-p", "ka lo", "--state", state}, "", &err), whole);
  EXPECT_NE(err.find("saved"), std::string::npos) << err;
  const std::string bytes = slurp(state);
  EXPECT_EQ("ka lo" + generated({"--state", state}, "", &err), whole);
  EXPECT_NE(err.find("goes on after"), std::string::npos) << err;
  EXPECT_EQ(slurp(state), bytes);
  EXPECT_EQ(rows(generated({"--state", state, "-i", "-"}, "{\"prompt\": \"\"}"))[0]["text"],
            whole.substr(5, whole.size() - 6));
}

TEST(GenerateCommand, RefusesWhatItCannotDoInOneLine) {
  const Files& f = files();
  const std::string other = f.dir / "other.mmfree", none = f.dir / "none", state = f.dir / "of_m.state";
  ModelConfig config = tiny_model_config();
  config.num_hidden_layers = 2;
  write_ternary_file(other, tiny_model(config), EmbeddingStore::f32);
  generated({"-p", "ka", "--state", state});
  struct Case {
    int status;
    std::vector<std::string> arguments;
    std::string input, part;
  };
  const std::string good = "{\"prompt\": \"ka\"}\n";
  std::vector<Case> cases = {{2, {f.model, "--stop", ""}, "", "--stop"},
                             {2, {f.model, "--samples", "0"}, "", "samples"},
                             {2, {f.model, "--min-p", "nan"}, "", "min_p"},
                             {2, {f.model, "--repetition-penalty", "0"}, "", "repetition-penalty"},
                             {2, {f.model, "-p", "a", "-i", f.prompts}, "", "--input"},
                             {66, {f.model, "-i", none}, "", none},
                             {66, {f.model, "-i", f.prompts, "--state", none}, "", none + ": does not exist"},
                             {65, {other, "--state", state}, "", state + ": is a state of another model"},
                             {65, {f.model, "--state", f.model}, "", "is no saved state"},
                             {73, {f.model, "-p", "a", "--state", f.prompts + "/s"}, "", f.prompts}};
  for (const std::string bad :
       {"[]", "\"ka\"", "7", "null", "{\"text\": \"ka\"}", "{\"prompt\": 7}", "{\"prompt\": null}",
        "{\"prompt\": [\"a\"]}", "{\"prompt\": \"a\", \"seed\": 3}", "{\"prompt\": \"a\", \"prompt\": \"b\"}", "{",
        "{\"prompt\": \"\xff\"}", "{\"prompt\": \"\\ud800\"}", "{\"prompt\": \"a\"} x"})
    cases.push_back({65, {f.model, "-i", "-"}, good + "\n" + bad + "\n" + good, "-:3: "});
  cases.push_back({65, {f.model, "-i", "-"}, good + "{\"prompt\": \"" + std::string(17 << 20, 'a') + "\"}", "-:2: "});
  cases.push_back({65, {f.model, "-i", "-"}, std::string("{\"prompt\": \"a\0\"}", 16), "-:1: "});
  for (Case& c : cases) {
    SCOPED_TRACE(c.arguments.back() + " " + c.input.substr(0, 60));
    c.arguments.insert(c.arguments.begin(), "generate");
    Program p(c.arguments, c.input);
    EXPECT_EQ(p.wait(), c.status) << p.err();
    EXPECT_EQ(p.out(), "");
    const std::string err = p.err();
    EXPECT_NE(err.find(c.part), std::string::npos) << err;
    EXPECT_EQ(std::count(err.begin(), err.end(), '\n'), 1) << err;
  }
  EXPECT_FALSE(std::filesystem::exists(none));
}

}  // namespace
}  // namespace mmfree
