// Folders of transformers' Llama, Mistral and BitNet: names and splits of tensors, dtypes, shards, tied heads, and what
// is refused. tests/golden/transformers/check_folders.py compares the logits with those of transformers.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/compare.h"
#include "tests/support/llama_models.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_run.h"
#include "tests/support/training.h"
#include "train/formats/hf_folder.h"
#include "train/inference/model.h"

namespace mmfree {
namespace {

Tensor logits(const Model& m) { return m.lm->logits(random_ids(34, m.config.vocab_size, 3), 2); }

void save(const std::string& dir, const Model& m, HfWriteOptions options = {}) {
  NamedShapes tensors;
  for (const ParamSpec& spec : parameter_specs(m.config)) tensors.emplace_back(spec.name, spec.shape);
  write_hf_folder(
      dir, m.config, tensors, [&](const std::string& name) { return (*m.params)[name].value(); }, options);
}

/// Writes the folder's tensors again, in one file: `change` gets their names and values in f32.
void rewrite(const std::string& dir, const std::function<void(std::map<std::string, Tensor>&)>& change) {
  std::map<std::string, Tensor> tensors;
  {
    const HfFolder folder(dir);
    for (const std::string& name : folder.names()) tensors[name] = folder.read(name, DType::f32);
  }
  change(tensors);
  SafetensorsWriter writer(dir + "/model.safetensors");
  for (const auto& [name, value] : tensors)
    writer.declare(name, value.dtype() == DType::u8 ? "U8" : "F32", value.shape());
  for (const auto& [name, value] : tensors) writer.write(name, value);
  writer.commit();
}

class LlamaFolder : public testing::TestWithParam<LlamaCase> {};

TEST_P(LlamaFolder, GivesTheSameModelWholeAndInShards) {
  const TempDir dir;
  const Model m = tiny_model(GetParam().config, false);
  save(dir / "whole", m);
  save(dir / "shards", m, {.max_shard_bytes = 20000});
  EXPECT_TRUE(std::filesystem::exists(dir / "shards/model.safetensors.index.json"));
  for (const char* name : {"whole", "shards"}) {
    const Model loaded = load_model(dir / name);
    EXPECT_TRUE(same_bits(loaded.params->values(), m.params->values())) << name;
    EXPECT_TRUE(same_bits(logits(loaded), logits(m))) << name;
  }
  for (const char* dtype : {"bfloat16", "float16"}) {
    save(dir / dtype, m, {.torch_dtype = dtype});
    const Model rounded = load_model(dir / dtype);
    EXPECT_EQ(HfFolder(dir / dtype).dtype_name("model.norm.weight"), std::string(dtype) == "float16" ? "F16" : "BF16");
    const double error = relative_error(rounded.params->values(), m.params->values());
    EXPECT_TRUE(error > 0 && error < 0x1p-8) << error;
  }
}

TEST_P(LlamaFolder, IsReadByItsOwnKeysToo) {
  const TempDir dir;
  const Model m = tiny_model(GetParam().config, false);
  save(dir / "hf", m);
  nlohmann::json json = nlohmann::json::parse(slurp(dir / "hf/config.json"));
  json.erase("mmfree");
  spit(dir / "hf/config.json", json.dump());
  const Model loaded = load_model(dir / "hf");
  EXPECT_EQ(loaded.params->values().size(), m.params->values().size());
  const bool same = m.config.precision != Precision::bf16 && GetParam().name != "some_bf16" &&
                    GetParam().name != "bitnet";  // their keys do not say which products are bf16
  EXPECT_EQ(same_bits(logits(loaded), logits(m)), same);
}

INSTANTIATE_TEST_SUITE_P(Kinds, LlamaFolder, testing::ValuesIn(llama_cases()),
                         [](const auto& info) { return info.param.name; });

/// The names in a folder of the model.
std::vector<std::string> names_of(const ModelConfig& config) {
  const TempDir dir;
  save(dir / "hf", tiny_model(config, false));
  return HfFolder(dir / "hf").names();
}

TEST(LlamaNames, AreThoseOfTransformers) {
  ModelConfig c = tiny_llama();
  c.num_hidden_layers = 1;
  const std::string layer = "model.layers.0.";
  std::vector<std::string> expected = {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"};
  for (const char* name :
       {"input_layernorm", "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "post_attention_layernorm",
        "self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj"})
    expected.push_back(layer + name + ".weight");
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(names_of(c), expected);
  c.fused_gate = true;
  EXPECT_EQ(names_of(c), expected);
  c.fused_gate = false, c.sub_norm = true;
  make_bitnet(c, true);
  for (const char* name : {"mlp.ffn_sub_norm", "self_attn.attn_sub_norm", "mlp.down_proj.rms_norm",
                           "mlp.gate_proj.rms_norm", "mlp.up_proj.rms_norm", "self_attn.k_proj.rms_norm",
                           "self_attn.o_proj.rms_norm", "self_attn.q_proj.rms_norm", "self_attn.v_proj.rms_norm"})
    expected.push_back(layer + name + ".weight");
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(names_of(c), expected);
  c.tie_word_embeddings = true, c.precision_rules.clear();
  std::replace(expected.begin(), expected.end(), std::string("lm_head.weight"), std::string("lm_head.rms_norm.weight"));
  EXPECT_EQ(names_of(c), expected);
}

TEST(LlamaFolder, AGateOfOneMatrixIsSplitIntoItsHalves) {
  const TempDir dir;
  ModelConfig c = tiny_llama();
  c.fused_gate = true;
  const Model m = tiny_model(c, false);
  save(dir / "hf", m);
  const HfFolder folder(dir / "hf");
  const Tensor whole = (*m.params)["model.layers.1.mlp.gate_proj.weight"].value();
  EXPECT_TRUE(same_bits(folder.read("model.layers.1.mlp.gate_proj.weight", DType::f32), whole.slice(0, 53)));
  EXPECT_TRUE(same_bits(folder.read("model.layers.1.mlp.up_proj.weight", DType::f32), whole.slice(53, 106)));
}

/// What loading says of a folder of the model after a change of its tensors; "" if it loads.
std::string refusal(const ModelConfig& config, const std::function<void(std::map<std::string, Tensor>&)>& change) {
  const TempDir dir;
  save(dir / "hf", tiny_model(config, false));
  rewrite(dir / "hf", change);
  try {
    load_model(dir / "hf");
  } catch (const DataError& e) {
    return e.what();
  }
  return "";
}

TEST(LlamaFolder, TensorsThatChangeTheModelAreRefusedAndOthersNot) {
  const std::string q = "model.layers.0.self_attn.q_proj.", rotary = "model.layers.0.self_attn.rotary_emb.inv_freq";
  ModelConfig tied = tiny_llama();
  tied.tie_word_embeddings = true;
  using Tensors = std::map<std::string, Tensor>;
  EXPECT_EQ(refusal(tiny_llama(), [&](Tensors& t) { t[rotary] = Tensor::zeros({4}, DType::f32); }), "");
  EXPECT_EQ(refusal(tied, [](Tensors& t) { t["lm_head.weight"] = t["model.embed_tokens.weight"]; }), "");
  const auto expect = [](const std::string& said, const std::string& tensor, const std::string& why) {
    EXPECT_TRUE(contains(said, "tensor '" + tensor + "'") && contains(said, why)) << said;
  };
  expect(refusal(tied,
                 [](Tensors& t) {
                   t["lm_head.weight"] = Tensor::zeros({61, 48}, DType::f32);
                 }),
         "lm_head.weight", "differs from the embedding table");
  expect(refusal(tied,
                 [](Tensors& t) {
                   t["lm_head.weight"] = Tensor::zeros({2, 48}, DType::f32);
                 }),
         "lm_head.weight", "differs from the embedding table");
  expect(refusal(tiny_llama(), [&](Tensors& t) { t[q + "bias"] = Tensor::zeros({48}, DType::f32); }), q + "bias",
         "has no place in a model of type llama");
  expect(refusal(tiny_llama(), [&](Tensors& t) { t.erase("lm_head.weight"); }), "lm_head.weight", "is missing");
  expect(refusal(tiny_llama(),
                 [&](Tensors& t) {
                   t[q + "weight"] = Tensor::zeros({12, 48}, DType::u8);
                 }),
         q + "weight", "holds packed weights (U8)");
  expect(refusal(tiny_llama(),
                 [&](Tensors& t) {
                   t[q + "weight"] = Tensor::zeros({40, 48}, DType::f32);
                 }),
         q + "weight", "expected [48, 48] by config.json");
  ModelConfig bits = tiny_llama();
  make_bitnet(bits, true);
  expect(refusal(bits, [&](Tensors& t) { t.erase(q + "rms_norm.weight"); }), q + "rms_norm.weight", "is missing");
  expect(refusal(bits, [&](Tensors& t) { t[q + "weight_scale"] = Tensor::zeros({1}, DType::f32); }), q + "weight_scale",
         "has no place");
}

TEST(LlamaFolder, ATokenizerOfAnotherKindIsNamedWhereOneIsNeeded) {
  const TempDir dir;
  save(dir / "hf", tiny_model(tiny_llama(), false));
  const auto said = [&] { return error_of<MissingError>([&] { load_model(dir / "hf").need_tokenizer(); }); };
  EXPECT_TRUE(contains(said(), "holds no tokenizer; give one"));
  spit(dir / "hf/tokenizer.json", "{}");
  EXPECT_TRUE(contains(said(), "tokenizer.json is not read; give one with --tokenizer")) << said();
}

TEST(LlamaFolder, ItsCardSaysWhatTheModelIs) {
  const TempDir dir;
  save(dir / "plain", tiny_model(tiny_llama(), false));
  ModelConfig bits = tiny_llama();
  make_bitnet(bits, false);
  save(dir / "bits", tiny_model(bits, false));
  const std::string plain = slurp(dir / "plain/README.md"), ternary = slurp(dir / "bits/README.md");
  EXPECT_TRUE(contains(plain, "library_name: transformers\n") && contains(plain, "\n- llama\n")) << plain;
  EXPECT_FALSE(contains(plain, "1.58-bit") || contains(plain, "ternary") || contains(plain, "MatMul-free")) << plain;
  EXPECT_TRUE(contains(ternary, "1.58-bit") && contains(ternary, "latent weights")) << ternary;
}

}  // namespace
}  // namespace mmfree
