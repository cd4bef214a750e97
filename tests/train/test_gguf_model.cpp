// Models as GGUF files: what llama.cpp needs, what it cannot express, and that no file is kept that is not the model.
#include <gtest/gtest.h>

#include "tests/support/compare.h"
#include "tests/support/llama_models.h"
#include "tests/support/program.h"
#include "tests/support/tiny_run.h"
#include "train/formats/gguf_model.h"
#include "train/run/checkpoint.h"

namespace mmfree {
namespace {

/// Attention with rows that divide by 256; the channel mixer's by 64.
ModelConfig wide_llama() {
  ModelConfig c = tiny_llama();
  c.hidden_size = 256, c.intermediate_size = 64, c.num_hidden_layers = 2;
  c.heads = 8, c.kv_heads = 4, c.initializer_range = 0.05;
  make_bitnet(c, false);
  return c;
}

ModelConfig wide_mlgru() {
  ModelConfig c = tiny_model_config();
  c.hidden_size = c.intermediate_size = 256, c.num_hidden_layers = 1;
  return c;
}

TEST(GgufModel, EveryTypeKeepsTheModelWithinItsRounding) {
  for (const ModelConfig& config : {wide_llama(), wide_mlgru()})
    for (const GgmlType type : kAllGgmlTypes) {
      SCOPED_TRACE(name_of(type));
      const TempDir dir;
      const Model m = tiny_model(config);
      const GgufReport report = export_gguf(dir / "x.gguf", m, {type, {}});
      EXPECT_EQ(report.difference > 0, type != GgmlType::f32);
      EXPECT_LE(report.difference, report.bound);
      EXPECT_EQ(report.bound > 0, type != GgmlType::f32);
      verify_gguf(dir / "x.gguf");
    }
}

TEST(GgufModel, PlainModelsAreStoredAsTheyAre) {
  for (const LlamaCase& c : llama_cases()) {
    SCOPED_TRACE(c.name);
    // What cannot be expressed is another test's.
    const bool expressible = c.config.activation == Activation::silu && !c.config.inner_norm && !c.config.sub_norm &&
                             !c.config.sliding_window && c.config.precision != Precision::ternary;
    const TempDir dir;
    const Model m = tiny_model(c.config);
    if (!expressible) continue;
    EXPECT_EQ(export_gguf(dir / "x.gguf", m).difference, 0);
    EXPECT_GT(export_gguf(dir / "y.gguf", m, {GgmlType::tq2_0, GgmlType::f16}).difference, 0);
  }
}

TEST(GgufModel, LlamaHasItsNamesAndRotaryPairsSideBySide) {
  const TempDir dir;
  const Model m = tiny_model(tiny_llama());
  export_gguf(dir / "x.gguf", m);
  const GgufReader file(dir / "x.gguf");
  EXPECT_EQ(file.text("general.architecture"), "llama");
  EXPECT_EQ(file.find("llama.attention.head_count_kv")->shown(), "2");
  EXPECT_EQ(file.find("llama.rope.dimension_count")->shown(), "8");
  EXPECT_EQ(file.find("llama.context_length")->shown(), "17");
  EXPECT_EQ(file.find("llama.feed_forward_length")->shown(), "53");
  EXPECT_EQ(file.tensors().size(), 3u + 3 * 9);
  EXPECT_TRUE(file.has("output.weight"));
  EXPECT_TRUE(same_bits(file.read("token_embd.weight"), (*m.params)["model.embeddings.weight"].value()));
  EXPECT_TRUE(
      same_bits(file.read("blk.2.ffn_down.weight"), (*m.params)["model.layers.2.mlp.down_proj.weight"].value()));
  const Tensor k = file.read("blk.1.attn_k.weight"), ours = (*m.params)["model.layers.1.attn.k_proj.weight"].value();
  for (const auto& [theirs, row] : {std::pair{0, 0}, {1, 4}, {2, 1}, {7, 7}, {8, 8}, {9, 12}})
    EXPECT_TRUE(same_bits(k.slice(theirs, theirs + 1), ours.slice(row, row + 1))) << theirs;
}

TEST(GgufModel, BitNetKeepsTheOrderOfRowsAndItsSubNorms) {
  ModelConfig c = wide_llama();
  c.sub_norm = c.tie_word_embeddings = true;
  const TempDir dir;
  const Model m = tiny_model(c);
  const GgufReport report = export_gguf(dir / "x.gguf", m);
  const GgufReader file(dir / "x.gguf");
  EXPECT_EQ(file.text("general.architecture"), "bitnet");
  EXPECT_FALSE(file.has("output.weight"));
  EXPECT_TRUE(file.has("blk.0.attn_sub_norm.weight") && file.has("blk.1.ffn_sub_norm.weight"));
  EXPECT_EQ(file.tensor("blk.0.attn_q.weight").type, GgmlType::tq2_0);
  TernaryTensor ours;
  m.lm->for_each_projection([&](const BitLinear& p) {
    if (p.name == "model.layers.0.attn.q_proj") ours = p.matrix->ternary;
  });
  Tensor codes({256, 256}, DType::f32), stored = file.read("blk.0.attn_q.weight");
  ternary_dequantise(ours, codes, false);
  for (int64_t i = 0; i < codes.size(); ++i) ASSERT_EQ(codes.data<float>()[i] > 0, stored.data<float>()[i] > 0) << i;
  // down_proj has rows of 64: a stated fallback, in the file too.
  EXPECT_EQ(file.tensor("blk.0.ffn_down.weight").type, GgmlType::q2_0);
  EXPECT_EQ(report.fallback, "2 of rows of 64 as Q2_0 instead of TQ2_0 (groups of 256)");
  EXPECT_EQ(file.text("mmfree.fallback"), report.fallback);
}

TEST(GgufModel, AFusedTernaryGateBecomesTwoMatricesOfOneScale) {
  ModelConfig c = wide_llama();
  c.fused_gate = true;
  const TempDir dir;
  const Model m = tiny_model(c);
  export_gguf(dir / "x.gguf", m);
  const GgufReader file(dir / "x.gguf");
  EXPECT_EQ(file.tensor("blk.0.ffn_gate.weight").shape, (Shape{64, 256}));
  EXPECT_EQ(file.tensor("blk.0.ffn_up.weight").shape, (Shape{64, 256}));
}

TEST(GgufModel, ATernaryTiedHeadIsATensorOfItsOwn) {
  ModelConfig c = wide_llama();
  c.tie_word_embeddings = true;
  c.precision_rules.clear();
  const TempDir dir;
  export_gguf(dir / "x.gguf", tiny_model(c));
  const GgufReader file(dir / "x.gguf");
  EXPECT_EQ(file.tensor("output.weight").type, GgmlType::tq2_0);
  EXPECT_EQ(file.tensor("token_embd.weight").type, GgmlType::f32);
}

TEST(GgufModel, MatMulFreeModelsKeepOurNames) {
  const TempDir dir;
  const Model m = tiny_model(wide_mlgru());
  const GgufReport report = export_gguf(dir / "x.gguf", m);
  const GgufReader file(dir / "x.gguf");
  EXPECT_EQ(report.architecture, "hgrn_bit");
  EXPECT_EQ(file.tensors().size(), parameter_specs(m.config).size());
  for (const ParamSpec& spec : parameter_specs(m.config)) EXPECT_EQ(file.tensor(spec.name).shape, spec.shape);
  EXPECT_DOUBLE_EQ(8.0 * double(report.ternary_bytes) / double(report.ternary_values), 2.0625);
  EXPECT_EQ(report.fallback, "");
}

TEST(GgufModel, RefusesByKeyWhatTheGraphCannotExpress) {
  const auto expect = [](const char* key, const std::function<void(ModelConfig&)>& change) {
    ModelConfig c = wide_llama();
    change(c);
    try {
      gguf_architecture(c, "m.h5");
      ADD_FAILURE() << key;
    } catch (const UsageError& e) {
      EXPECT_EQ(std::string(e.what()).find(concat("m.h5: ", key, ": ")), 0u) << e.what();
    }
  };
  EXPECT_EQ(gguf_architecture(wide_llama(), ""), "llama");
  expect("model.activation", [](ModelConfig& c) { c.activation = Activation::relu2; });
  expect("model.sliding_window", [](ModelConfig& c) { c.sliding_window = 5; });
  expect("model.inner_norm", [](ModelConfig& c) { c.inner_norm = true; });
  expect("model.inner_norm", [](ModelConfig& c) { c.precision_rules = {{{}, {"lm_head"}, {}, true}}; });
  expect("model.channel", [](ModelConfig& c) { c.channel = ChannelKind::mlp; });
  expect("model.token", [](ModelConfig& c) {
    LayerEntry a, b;
    b.token = TokenKind::mlgru;
    c.layers = {a, b};
  });
  expect("model.intermediate_size", [](ModelConfig& c) {
    LayerEntry a, b;
    b.intermediate_size = 128;
    c.layers = {a, b};
  });
  expect("model.tie_word_embeddings", [](ModelConfig& c) { c.sub_norm = true; });
  const auto bitnet = [](ModelConfig& c) { c.sub_norm = c.tie_word_embeddings = true; };
  expect("model.activation", [&](ModelConfig& c) { bitnet(c), c.activation = Activation::relu2; });
  expect("model.precision", [&](ModelConfig& c) { bitnet(c), c.precision_rules.clear(); });
  expect("model.head_dim", [&](ModelConfig& c) { bitnet(c), c.head_dim = 16; });
  expect("model.sub_norm", [&](ModelConfig& c) {
    LayerEntry a, b;
    b.sub_norm = true;
    c.layers = {a, b};
  });
}

TEST(GgufModel, BringsTheTokenizer) {
  const TempDir dir;
  Model m = tiny_model(tiny_llama());
  m.config.vocab_size = 323;
  export_gguf(dir / "x.gguf", m);
  const GgufReader file(dir / "x.gguf");
  EXPECT_EQ(file.text("tokenizer.ggml.model"), "llama");
  const auto& tokens = file.find("tokenizer.ggml.tokens")->texts;
  ASSERT_EQ(tokens.size(), 323u);
  for (int id = 0; id < m.tokenizer->vocab_size(); ++id) EXPECT_EQ(tokens[size_t(id)], m.tokenizer->piece(id));
  EXPECT_EQ(tokens[322], "[PAD322]");
  EXPECT_EQ(file.find("tokenizer.ggml.scores")->count, 323u);
  int32_t type = 0;
  std::memcpy(&type, file.find("tokenizer.ggml.token_type")->bytes.data() + 4 * 5, 4);
  EXPECT_EQ(type, 6);  // a byte
  EXPECT_EQ(file.find("tokenizer.ggml.bos_token_id")->shown(), "1");
  EXPECT_EQ(file.find("tokenizer.ggml.unknown_token_id")->shown(), "0");
  EXPECT_EQ(file.find("tokenizer.ggml.add_bos_token")->shown(), "true");
  EXPECT_EQ(file.find("tokenizer.ggml.add_space_prefix")->shown(), m.tokenizer->adds_dummy_prefix() ? "true" : "false");
  m.framing = Framing::eos;
  m.tokenizer.reset();
  EXPECT_NE(export_gguf(dir / "y.gguf", m).no_tokenizer, "");
  EXPECT_EQ(GgufReader(dir / "y.gguf").text("tokenizer.ggml.model"), "no_vocab");
}

TEST(GgufModel, AnExportThatIsNotTheModelNeverReplacesAnother) {
  const TempDir dir;
  Model m = tiny_model(wide_mlgru(), false);
  spit(dir / "x.gguf", "an older export");
  m.config.gate_order = GateOrder::fixed;  // what the file will say, and not what m computes
  EXPECT_THROW(export_gguf(dir / "x.gguf", m), Error);
  EXPECT_EQ(slurp(dir / "x.gguf"), "an older export");
  EXPECT_EQ(dir.files(), 1u);
}

TEST(GgufModel, TheHashSeesEveryChange) {
  const TempDir dir;
  ModelConfig c = tiny_model_config();
  c.vocab_size = 5, c.hidden_size = 3, c.intermediate_size = 2, c.num_hidden_layers = 1;
  c.bos_token_id = c.eos_token_id = -1;
  export_gguf(dir / "x.gguf", tiny_model(c, false));
  const std::string good = slurp(dir / "x.gguf");
  const int64_t begin = GgufReader(dir / "x.gguf").data_begin();
  const GgufTensor last = GgufReader(dir / "x.gguf").tensors().back();
  for (size_t i = 0; i < good.size(); i += i < size_t(begin) ? 1 : 3) {
    if (int64_t(i) >= begin && (int64_t(i) - begin) % 32 >= 4) continue;  // padding may follow
    std::string bad = good;
    bad[i] = char(bad[i] ^ 4);
    spit(dir / "bad.gguf", bad);
    try {
      verify_gguf(dir / "bad.gguf");
      EXPECT_TRUE(int64_t(i) >= begin - 32 && bad[i] == 4) << "byte " << i << " changed unseen";
    } catch (const DataError&) {
    }
  }
}

TEST(GgufModel, TheCommandsExportShowVerifyAndReplace) {
  const TempDir dir;
  const Model m = tiny_model(wide_llama());
  RunConfig config;
  config.model = m.config;
  config.data.seq_len = m.seq_len;
  save_checkpoint(dir / "m.h5", config, *m.params, {m.params->values(), {}}, {}, m.tokenizer->serialized());
  const auto run = [&](std::vector<std::string> words, int status) {
    Program p(words);
    EXPECT_EQ(p.wait(), status) << p.out() << p.err();
    return p.out() + p.err();
  };
  const auto expect = [](const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << text << "expected: " << part;
  };
  const std::string file = dir / "x.gguf";
  const std::vector<std::string> words = {"export", dir / "m.h5", file, "--format", "gguf"};
  std::vector<std::string> again = words;
  again.insert(again.end(), {"--gguf-type", "TQ1_0", "--gguf-other", "F16", "--overwrite"});
  const std::string said = run(words, 0);
  expect(said, "GGUF of architecture llama");
  expect(said, "fallback: 2 of rows of 64 as Q2_0 instead of TQ2_0 (groups of 256)");
  expect(said, "checked: loaded again");
  expect(run({"info", file}, 0), "TQ2_0");
  expect(run({"info", file}, 0), "llama.block_count = 2");
  expect(run({"info", "--verify", file}, 0), "verified");
  run(words, 73);  // it is there already
  run(again, 0);
  expect(run({"info", file}, 0), "TQ1_0");
  std::string bytes = slurp(file);
  bytes[bytes.size() - 100] ^= 1;
  spit(file, bytes);
  expect(run({"info", "--verify", file}, 65), "does not match its hash");
  run(again, 73);  // changed since: not ours to replace
  EXPECT_EQ(slurp(file), bytes);
}

}  // namespace
}  // namespace mmfree
