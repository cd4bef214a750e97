// Texts and further evaluation sets of a run.
#include "tests/support/training.h"
#include "train/inference/generate.h"
#include "train/run/samples.h"

namespace mmfree {
namespace {
using Json = nlohmann::json;

std::vector<Json> samples_of(const std::string& folder) {
  std::vector<Json> rows;
  std::ifstream in(folder + "/samples.jsonl");
  for (std::string line; std::getline(in, line);) rows.push_back(Json::parse(line));
  return rows;
}

RunConfig talking_run(const std::string& folder) {
  RunConfig c = tiny_run(folder);
  c.train.sample_every = 5;
  c.train.sample_prompts = {"ka lo", "el \"da\" \\ é"};
  c.train.sample_tokens = 12;
  c.train.save_every = 2;
  c.train.keep_last = 9;
  return c;
}

TEST(Samples, AreWrittenOnTheWayAndAtTheEndAndChangeNothing) {
  const TempDir dir;
  RunConfig silent = tiny_run(dir / "silent"), c = talking_run(dir / "run");
  silent.train.save_every = 2;
  train(silent);
  train(c);
  EXPECT_EQ(timeless_metrics(dir / "silent"), timeless_metrics(dir / "run"));
  EXPECT_EQ(learned(checkpoint_path(dir / "silent", 12)), learned(checkpoint_path(dir / "run", 12)));
  const std::vector<Json> rows = samples_of(dir / "run");
  ASSERT_EQ(6u, rows.size());
  for (size_t i = 0; i < 6; ++i) {
    EXPECT_EQ((std::vector<int>{5, 5, 10, 10, 12, 12})[i], rows[i]["step"]);
    EXPECT_EQ(c.train.sample_prompts[i % 2], rows[i]["prompt"]);
    EXPECT_FALSE(std::string(rows[i]["text"]).empty());
  }
  EXPECT_NE(rows[0]["text"], rows[2]["text"]) << "another step, another model";
  EXPECT_FALSE(std::filesystem::exists(dir / "silent/samples.jsonl"));
}

TEST(Samples, AreThoseThatGenerateGives) {
  const TempDir dir;
  RunConfig c = talking_run(dir / "run");
  c.train.sample_prompts = {"ka lo"};
  train(c);
  const Model model = load_model(checkpoint_path(dir / "run", 10));
  GenerateOptions options;
  options.max_tokens = 12;
  options.stop = {model.need_tokenizer().eos_id()};
  const std::vector<int32_t> prompt = model.encoder().prompt("ka lo");
  const std::vector<int32_t> ids = generate(*model.lm, prompt, options);
  std::vector<int32_t> all = prompt, known;
  all.insert(all.end(), ids.begin(), ids.end());
  for (const int32_t id : all)
    if (id < model.need_tokenizer().vocab_size()) known.push_back(id);
  EXPECT_EQ(model.need_tokenizer().decode(known), "ka lo" + std::string(samples_of(dir / "run")[1]["text"]));
}

TEST(Samples, ARunThatGoesOnHasEachOnce) {
  const TempDir dir;
  RunConfig whole = talking_run(dir / "whole"), c = talking_run(dir / "run");
  train(whole);
  train(c);
  for (const int64_t later : {6, 8, 10, 12}) std::filesystem::remove(checkpoint_path(dir / "run", later));
  spit(dir / "run/samples.jsonl", slurp(dir / "run/samples.jsonl") + "{\"step\": 1");
  c.train.resume.mode = ResumeFrom::newest;
  train(c);
  EXPECT_EQ(slurp(dir / "whole/samples.jsonl"), slurp(dir / "run/samples.jsonl"));
  train(c);
  EXPECT_EQ(slurp(dir / "whole/samples.jsonl"), slurp(dir / "run/samples.jsonl")) << "a run that had ended";
}

TEST(Samples, OfAnOlderRunDoNotPassForThoseOfANewOne) {
  const TempDir dir;
  RunConfig c = talking_run(dir / "run");
  train(c);
  std::filesystem::remove_all(dir / "run/checkpoints");
  c.train.sample_every = 0;
  train(c);
  EXPECT_FALSE(std::filesystem::exists(dir / "run/samples.jsonl"));
  std::filesystem::remove_all(dir / "run/checkpoints");
  spit(dir / "run/samples.jsonl", "mine");
  c.train.sample_every = 5;
  EXPECT_TRUE(contains(error_of<CreateError>([&] { train(c); }), "samples.jsonl"));
  EXPECT_EQ("mine", slurp(dir / "run/samples.jsonl"));
}

TEST(Samples, WantATokenizerAndSomethingToGoOnFrom) {
  const TempDir dir;
  RunConfig c = talking_run(dir / "run");
  c.data.tokenizer = "";
  EXPECT_EQ(
      error_of<ConfigError>([&] { train(c); }),
      "tiny.yaml: train.sample_every is 5, but texts need a tokenizer; set data.tokenizer, or train.sample_every=0");
  c = talking_run(dir / "empty");
  c.train.sample_prompts = {};
  train(c);
  EXPECT_EQ("", samples_of(dir / "empty")[0]["prompt"]) << "documents begin with a mark";
}

TEST(EvalSets, EachHasItsMetricsAndTheirsAreNotOthers) {
  const TempDir dir;
  RunConfig plain = tiny_run(dir / "plain"), c = tiny_run(dir / "run");
  plain.train.eval_every = c.train.eval_every = 4;
  c.data.eval_sets = {{"same", {TinyCorpus::get().valid()}}, {"train", {TinyCorpus::get().train()}}};
  train(plain);
  const std::string text = text_of([&] { Trainer(c, false, false).run(); });
  EXPECT_TRUE(contains(text, "step 4  same loss ")) << text;
  int lines = 0;
  std::vector<Json> rows = timeless_metrics(dir / "run");
  for (Json& row : rows) {
    if (!row.contains("val/loss")) continue;
    ++lines;
    for (const char* what : {"loss", "ppl", "bpb"}) {
      const std::string end = std::string("/") + what;
      EXPECT_EQ(row["val" + end], row["eval/same" + end]);
      EXPECT_NE(row["val" + end], row["eval/train" + end]);
      row.erase("eval/same" + end), row.erase("eval/train" + end);
    }
  }
  EXPECT_EQ(4, lines) << "before the first step too";
  EXPECT_EQ(timeless_metrics(dir / "plain"), rows);
}

TEST(EvalSets, MustBePreparedAsTheTrainingDataAre) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  ShardInfo other = shard_info(TinyCorpus::get().tokenizer(), "train");
  other.tokenizer_hash = "0123456789abcdef";
  {
    ShardWriter shard(dir / "other.h5", other, "test");
    shard.add({1, 2, 3});
    shard.commit();
  }
  c.data.eval_sets = {{"other", {dir / "other.h5"}}};
  EXPECT_TRUE(
      contains(error_of<DataError>([&] { train(c); }), "data.eval_sets 'other' and the training shards differ"));
}

}  // namespace
}  // namespace mmfree
