// Loading a model from whatever a user names.
#include <gtest/gtest.h>

#include "tests/support/compare.h"
#include "tests/support/tiny_run.h"
#include "train/formats/hf_folder.h"
#include "train/formats/ternary_file.h"
#include "train/inference/model.h"
#include "train/run/checkpoint.h"

namespace mmfree {
namespace {
namespace fs = std::filesystem;

void save(const std::string& path, const Model& m) {
  RunConfig c;
  c.model = m.config;
  c.data.seq_len = m.seq_len;
  save_checkpoint(path, c, *m.params, {m.params->values(), {}}, {}, m.tokenizer ? m.tokenizer->serialized() : "");
}

void save_hf(const std::string& dir, const Model& m, const std::string& dtype = "float32",
             int64_t shard_bytes = 1 << 30) {
  std::vector<std::pair<std::string, Shape>> tensors;
  for (const ParamSpec& spec : parameter_specs(m.config)) tensors.emplace_back(spec.name, spec.shape);
  HfWriteOptions options;
  options.torch_dtype = dtype;
  options.max_shard_bytes = shard_bytes;
  if (m.tokenizer) options.tokenizer_model = m.tokenizer->serialized();
  write_hf_folder(
      dir, m.config, tensors, [&](const std::string& name) { return (*m.params)[name].value(); }, options);
}

Tensor logits(const Model& m) { return m.lm->logits(random_ids(34, m.config.vocab_size, 3), 2); }

TEST(Model, EveryFormGivesTheSameModel) {
  const TempDir dir;
  ModelConfig c = tiny_model_config();
  mix_precisions(c);
  c.gate_order = GateOrder::fixed;
  const Model m = tiny_model(c);
  const Tensor expected = logits(m);
  fs::create_directories(dir / "run/checkpoints");
  save(checkpoint_path(dir / "run", 3), m);
  save_hf(dir / "hf", m);
  save_hf(dir / "sharded", m, "float32", 30000);
  EXPECT_TRUE(fs::exists(dir / "sharded/model.safetensors.index.json"));
  write_ternary_file(dir / "m.mmfree", m, EmbeddingStore::f32);
  for (const auto& [path, kind] :
       std::vector<std::pair<std::string, std::string>>{{dir / "run", "checkpoint"},
                                                        {checkpoint_path(dir / "run", 3), "checkpoint"},
                                                        {dir / "hf", "Hugging Face folder"},
                                                        {dir / "sharded", "Hugging Face folder"},
                                                        {dir / "m.mmfree", "ternary export"}}) {
    SCOPED_TRACE(path);
    const Model loaded = load_model(path);
    EXPECT_EQ(loaded.kind, kind);
    EXPECT_TRUE(same_bits(logits(loaded), expected));
    EXPECT_EQ(loaded.need_tokenizer().hash(), m.tokenizer->hash());
    EXPECT_EQ(loaded.config.gate_order, GateOrder::fixed);
  }
  for (const char* dtype : {"bfloat16", "float16"}) {
    save_hf(dir / dtype, m, dtype);
    const Model rounded = load_model(dir / dtype);
    EXPECT_LT(relative_error(rounded.params->values(), m.params->values()), 0x1p-8);
    EXPECT_GT(relative_error(rounded.params->values(), m.params->values()), 0);
  }
}

TEST(Model, TokenizersAreOptionalReplaceableAndMustFit) {
  const TempDir dir;
  const Model m = tiny_model(tiny_model_config(), false);  // 61 token ids
  save(dir / "a.h5", m);
  const Model loaded = load_model(dir / "a.h5");
  EXPECT_FALSE(loaded.tokenizer);
  EXPECT_THROW(loaded.need_tokenizer(), MissingError);
  EXPECT_THROW(load_model(dir / "a.h5", TinyCorpus::get().tokenizer_path()), DataError);
  ModelConfig wide = tiny_model_config();
  wide.vocab_size = 320;
  save(dir / "b.h5", tiny_model(wide, false));
  EXPECT_EQ(load_model(dir / "b.h5", TinyCorpus::get().tokenizer_path()).need_tokenizer().vocab_size(), 320);
}

TEST(Model, WhatIsNoModelIsRefused) {
  const TempDir dir;
  EXPECT_THROW(load_model(dir / "nothing"), MissingError);
  EXPECT_THROW(load_model(dir.path()), MissingError);
  for (const std::string& text :
       {std::string(), std::string("MMFREEH5"), std::string("hello"), std::string(5000, '\0')}) {
    spit(dir / "file", text);
    EXPECT_THROW(load_model(dir / "file"), DataError) << text.substr(0, 10);
  }
  EXPECT_THROW(load_model(TinyCorpus::get().tokenizer_path()), DataError);
}

TEST(Model, AFolderThatLacksATensorOrHasAnotherShapeIsRefused) {
  const TempDir dir;
  const Model m = tiny_model(tiny_model_config(), false);
  save_hf(dir / "hf", m);
  ModelConfig other = m.config;
  other.num_hidden_layers = 4;
  write_hf_config(dir / "hf", other, "float32");
  EXPECT_THROW(load_model(dir / "hf"), DataError);
  other = m.config;
  other.intermediate_size = 54;
  write_hf_config(dir / "hf", other, "float32");
  EXPECT_THROW(load_model(dir / "hf"), DataError);
  // Terabytes, by the configuration's word alone.
  other.hidden_size = 1 << 17, other.vocab_size = 1 << 24, other.num_hidden_layers = 4096;
  write_hf_config(dir / "hf", other, "float32");
  EXPECT_THROW(load_model(dir / "hf"), DataError);
}

TEST(Model, ADamagedNewestCheckpointIsPassedOverWithAWarning) {
  const TempDir dir;
  fs::create_directories(dir / "run/checkpoints");
  const Model m = tiny_model(tiny_model_config());
  save(checkpoint_path(dir / "run", 3), m);
  spit(checkpoint_path(dir / "run", 4), "MMFREEH5");
  testing::internal::CaptureStderr();
  EXPECT_EQ(load_model(dir / "run").source, checkpoint_path(dir / "run", 3));
  EXPECT_NE(testing::internal::GetCapturedStderr().find("warning: passing over a damaged checkpoint"),
            std::string::npos);
}

}  // namespace
}  // namespace mmfree
