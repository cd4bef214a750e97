// What a run makes of its data: mixed sources and stages, resumed to the bit; one count of tokens; a jump of the
// learning rate is told; and the framing and ids of the shards travel with the model.
#include <gtest/gtest.h>

#include "data/mixture.h"
#include "tests/support/program.h"
#include "tests/support/training.h"
#include "train/formats/hf_folder.h"
#include "train/formats/ternary_file.h"

namespace mmfree {
namespace {

/// A run on two sources of random tokens, with another mixture from the fifth step on.
RunConfig mixed_run(const TempDir& dir) {
  RunConfig c = tiny_run(dir / "run");
  c.data.train.clear();
  for (const char* name : {"a", "b"}) {
    std::filesystem::create_directories(dir / name);
    const Tensor ids = random_ids(900, 320, uint64_t(name[0]));
    ShardWriter shard(dir / name + "/train-0.h5", shard_info(TinyCorpus::get().tokenizer(), "train"), "test");
    shard.add(std::vector<int32_t>(ids.data<int32_t>(), ids.data<int32_t>() + ids.size()));
    shard.commit();
  }
  c.data.sources = {{"a", {dir / "a"}, 3}, {"b", {dir / "b"}, 1}};
  c.data.stages = {{5 * c.train.batch_size * c.data.seq_len, {0, 1}}};
  return c;
}

TEST(Mixing, AResumedRunEqualsOneThatWasNotCut) {
  const TempDir whole, cut;
  train(mixed_run(whole));
  RunConfig c = mixed_run(cut);
  c.train.resume = {ResumeFrom::newest_if_any};
  for (const int64_t at : {3, 4, 8}) {
    RunConfig part = c;
    part.train.save_every = at;
    part.train.max_time = 1e-9;
    text_of([&] { train(part); });
  }
  text_of([&] { EXPECT_TRUE(train(c).finished); });
  EXPECT_EQ(learned(checkpoint_path(cut / "run", 12)), learned(checkpoint_path(whole / "run", 12)));
  EXPECT_EQ(timeless_metrics(cut / "run"), timeless_metrics(whole / "run"));
}

TEST(Mixing, AnotherMixtureIsAnotherTraining) {
  const TempDir dir;
  RunConfig c = mixed_run(dir);
  c.train.steps = 3;
  train(c);
  c.train.resume = {ResumeFrom::newest_if_any};
  c.train.steps = 4;
  RunConfig moved = c;
  std::filesystem::rename(dir / "a", dir / "elsewhere");
  moved.data.sources[0].shards = {dir / "elsewhere"};
  text_of([&] { EXPECT_EQ(train(moved).step, 4) << "shards are known by their content"; });
  RunConfig weighted = moved;
  weighted.train.steps = 5;
  weighted.data.sources[0].weight = 2;
  EXPECT_TRUE(contains(error_of<ConfigError>([&] { train(weighted); }), "data.sources"));
  RunConfig staged = moved;
  staged.train.steps = 5;
  staged.data.stages.clear();
  EXPECT_TRUE(contains(error_of<ConfigError>([&] { train(staged); }), "data.stages"));
}

TEST(Mixing, ConfigurationsThatMakeNoSenseAreRefused) {
  const auto problem = [](const std::string& data) {
    return error_of<ConfigError>([&] { load_config_text("data: " + data, "x.yaml"); });
  };
  const std::string sources = "{sources: [{name: a, shards: a}, {name: b, shards: b, weight: 0}]";
  EXPECT_NO_THROW(load_config_text("data: " + sources + "}", "x.yaml"));
  EXPECT_NO_THROW(load_config_text("data: " + sources + ", stages: [{from_tokens: 5, weights: [0, 1]}]}", "x.yaml"));
  EXPECT_TRUE(contains(problem(sources + ", train: x}"), "takes the place of data.train"));
  EXPECT_TRUE(contains(problem("{sources: [{name: a, shards: a, weight: 0}]}"), "weights above 0"));
  EXPECT_TRUE(contains(problem(sources + ", stages: [{from_tokens: 5, weights: [1]}]}"), "each of 2 sources"));
  EXPECT_TRUE(contains(problem(sources + ", stages: [{from_tokens: 5, weights: [0, 0]}]}"), "above 0"));
  EXPECT_TRUE(
      contains(problem(sources + ", stages: [{from_tokens: 5, weights: [1, 1]}, {from_tokens: 5, weights: [1, 1]}]}"),
               "expected more than 5"));
}

TEST(Mixing, AfterAChangeOfTheBatchDataAndTokensGoOnWhereTheyStood) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  // 64 windows of 17, of which those from 24 to 31 are not scored: the second batch of 8 after four batches of 4.
  const Tensor ids = random_ids(64 * 17 + 1, 320, 77);
  std::vector<uint8_t> mask(size_t(ids.size()), 1);
  std::fill_n(mask.begin() + 24 * 17 + 1, 8 * 17, uint8_t(0));
  ShardWriter shard(dir / "train-00000.h5", shard_info(TinyCorpus::get().tokenizer(), "train"), "test");
  shard.add(std::vector<int32_t>(ids.data<int32_t>(), ids.data<int32_t>() + ids.size()), mask);
  shard.commit();
  c.data.train = {dir / "train-00000.h5"};
  c.data.valid.clear();
  c.data.shuffle = false;
  c.train.steps = 4;
  train(c);
  c.train.resume = {ResumeFrom::newest_if_any};
  c.train.steps = 6;
  c.train.batch_size = 8;
  const std::string said = text_of([&] { train(c, true); });
  EXPECT_TRUE(contains(said, "step 6: no target of its batch is scored")) << said;
  int64_t before = 0;
  for (const nlohmann::json& row : all_metrics(dir / "run")) {
    const int64_t samples = int64_t(row["step"]) <= 4 ? 4 : 8;
    EXPECT_EQ(row["train/tokens"], before + samples * 17) << row;
    EXPECT_DOUBLE_EQ(row["train/epoch"], double(row["train/tokens"]) / 17 / 64) << row;
    before = row["train/tokens"];
  }
  EXPECT_EQ(before, (4 * 4 + 8) * 17);
  EXPECT_EQ(Checkpoint(checkpoint_path(dir / "run", 6)).state().tokens, before + 8 * 17);
}

TEST(Mixing, AJumpOfTheLearningRateIsTold) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  train(c);
  c.train.resume = {ResumeFrom::newest_if_any};
  c.train.steps = 24;
  const std::string said = text_of([&] { train(c); });
  EXPECT_TRUE(contains(said, "the learning rate goes from 0 in step 12 to 0.00")) << said;
  EXPECT_TRUE(contains(said, "in step 13")) << said;
  EXPECT_FALSE(contains(text_of([&] {
                          RunConfig same = c;
                          same.train.max_time = 1e-9;
                          same.train.run_dir = dir / "other";
                          same.train.steps = 12;
                          train(same);
                          same.train.max_time = 0;
                          train(same);
                        }),
                        "learning rate goes"));
}

TEST(Mixing, IdsAndFramingOfTheShardsTravelWithTheModel) {
  const Tokenizer& t = TinyCorpus::get().tokenizer();
  for (const Framing framing : {Framing::none, Framing::eos, Framing::both}) {
    const TempDir dir;
    ShardWriter shard(dir / "train-0.h5", shard_info(t, "train", framing), "test");
    const DocumentEncoder encoder(t, framing);
    for (uint64_t d = 0; d < 20; ++d) shard.add(encoder.document({tiny_text(40, d), ""}).tokens);
    shard.commit();
    RunConfig c = tiny_run(dir / "run");
    c.data.train = {dir / "train-0.h5"};
    c.data.valid.clear();
    c.train.steps = 2;
    c.optim.warmup_steps = 0;
    c.model.bos_token_id = 7;
    c.model.eos_token_id = -1;
    const std::string said = text_of([&] { train(c); });
    EXPECT_TRUE(contains(said, "warning: model.bos_token_id is 7, but the tokenizer of the training shards has 1"))
        << said;
    const Model trained = load_model(dir / "run");
    EXPECT_EQ(trained.framing, framing);
    EXPECT_EQ(trained.config.bos_token_id, t.bos_id());
    EXPECT_EQ(trained.config.eos_token_id, t.eos_id());
    export_ternary(dir / "m.mmfree", trained, EmbeddingStore::f32);
    EXPECT_EQ(load_model(dir / "m.mmfree").framing, framing);
    EXPECT_EQ(Program({"export", dir / "run", dir / "hf", "--format", "hf"}).wait(), 0);
    const Model exported = load_model(dir / "hf");
    EXPECT_EQ(exported.framing, framing);
    EXPECT_EQ(exported.seq_len, 17);
    EXPECT_EQ(exported.config.bos_token_id, t.bos_id());
    c.data.framing = framing == Framing::both ? Framing::none : Framing::both;
    c.train.run_dir = dir / "again";
    EXPECT_TRUE(contains(error_of<ConfigError>([&] { train(c); }), "data.framing"));
  }
}

}  // namespace
}  // namespace mmfree
