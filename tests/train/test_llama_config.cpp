// config.json of transformers' Llama, Mistral and BitNet: what 4.x and 5.x write is read, what is written reads back,
// and what the classes would compute otherwise is refused or is not given their names.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/support/llama_models.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"
#include "tests/support/training.h"
#include "train/formats/hf_folder.h"
#include "train/formats/llama_config.h"

namespace mmfree {
namespace {

using Json = nlohmann::json;

std::string yaml_of(const ModelConfig& c) {
  RunConfig run;
  run.model = c;
  return to_yaml(run);
}

ModelConfig read_text(const std::string& json) {
  const TempDir dir;
  spit(dir / "config.json", json);
  return read_hf_config(dir.path());
}

/// The keys that a model is written with.
Json written(const ModelConfig& c, const std::string& dtype = "float32") {
  const TempDir dir;
  write_hf_config(dir.path(), c, dtype);
  return Json::parse(slurp(dir / "config.json"));
}

TEST(LlamaConfig, EveryKindReadsBackAsTheSameModel) {
  for (const LlamaCase& each : llama_cases()) {
    SCOPED_TRACE(each.name);
    each.config.validate();
    const Json json = written(each.config, "bfloat16");
    EXPECT_EQ(json["model_type"], each.model_type);
    EXPECT_EQ(yaml_of(read_text(json.dump())), yaml_of(each.config));
    EXPECT_EQ(json["torch_dtype"], "bfloat16");
    EXPECT_TRUE(json["rope_scaling"].is_null());
    EXPECT_EQ(json["rope_theta"], json["rope_parameters"]["rope_theta"]);
    EXPECT_EQ(json.contains("sliding_window"), each.model_type == "mistral");
    EXPECT_EQ(json.contains("quantization_config"), each.config.precision == Precision::ternary);
  }
}

TEST(LlamaConfig, TheirKeysAloneDescribeWhatIsComputed) {
  for (const LlamaCase& each : llama_cases()) {
    SCOPED_TRACE(each.name);
    Json json = written(each.config);
    json.erase("mmfree");
    const ModelConfig read = read_text(json.dump());
    EXPECT_EQ(llama_difference(read, each.config), "");
    EXPECT_FALSE(read.fused_gate);
    EXPECT_EQ(architecture_of(read).model_type, each.model_type);
    EXPECT_EQ(read.layer(0).precision_of("lm_head") == Precision::ternary, each.name == "ternary_head");
  }
}

TEST(LlamaConfig, AQuantisedModelIsWrittenAsTransformersReadsIt) {
  ModelConfig c = tiny_llama();
  make_bitnet(c, true);
  const Json expected = {{"quant_method", "bitnet"},      {"linear_class", "autobitlinear"},
                         {"quantization_mode", "online"}, {"modules_to_not_convert", {"lm_head"}},
                         {"use_rms_norm", true},          {"rms_norm_eps", 1e-6}};
  EXPECT_EQ(written(c)["quantization_config"], expected);
  c.precision_rules.push_back({{1}, {"up_proj"}, Precision::bf16, false});
  EXPECT_EQ(written(c)["quantization_config"]["modules_to_not_convert"],
            Json({"model.layers.1.mlp.up_proj", "lm_head"}));
  c.precision_rules.clear();
  EXPECT_EQ(written(c)["quantization_config"]["modules_to_not_convert"], Json::array());
}

TEST(LlamaConfig, DefaultsAreThoseOfThePublishedModels) {
  const ModelConfig llama = read_text(R"({"model_type":"llama"})");  // Llama 2 7B
  EXPECT_EQ(llama.parameter_count(), 6'738'415'616);
  EXPECT_EQ(llama.rope_theta, 10000);
  EXPECT_EQ(llama.sliding_window, 0);
  EXPECT_EQ(llama.precision, Precision::f32);
  const ModelConfig mistral = read_text(R"({"model_type":"mistral","torch_dtype":"bfloat16"})");  // Mistral 7B
  EXPECT_EQ(mistral.parameter_count(), 7'241'732'096);
  EXPECT_EQ(mistral.sliding_window, 4096);
  EXPECT_EQ(mistral.kv_heads, 8);
  EXPECT_EQ(mistral.precision, Precision::bf16);
  const ModelConfig bitnet = read_text(
      R"({"model_type":"bitnet","tie_word_embeddings":true,"torch_dtype":"bfloat16","quantization_config":{)"
      R"("quant_method":"bitnet","linear_class":"autobitlinear","quantization_mode":"online"}})");  // b1.58 2B4T
  EXPECT_EQ(bitnet.parameter_count(), 2'412'820'480);
  EXPECT_EQ(bitnet.rope_theta, 500000);
  EXPECT_EQ(bitnet.rms_norm_eps, 1e-5);
  EXPECT_EQ(bitnet.activation, Activation::relu2);
  EXPECT_TRUE(bitnet.sub_norm && !bitnet.inner_norm && !bitnet.fused_gate);
  EXPECT_EQ(bitnet.layer(3).precision_of("down_proj"), Precision::ternary);
  EXPECT_EQ(bitnet.layer(-1).precision_of("lm_head"), Precision::bf16);
}

/// Keys of a small model of the type, with others added.
std::string with(const std::string& type, const std::string& keys) {
  return R"({"model_type":")" + type +
         R"(","vocab_size":61,"hidden_size":48,"intermediate_size":53,"num_hidden_layers":2,"num_attention_heads":6)" +
         (keys.empty() ? "" : ",") + keys + "}";
}

TEST(LlamaConfig, BothSpellingsOfOneSettingAreRead) {
  struct Case {
    std::string type, keys;
    std::function<bool(const ModelConfig&)> holds;
  };
  const std::vector<Case> cases = {
      {"llama", R"("rope_theta":5e5,"rope_scaling":null)", [](auto& c) { return c.rope_theta == 5e5; }},
      {"llama", R"("rope_parameters":{"rope_type":"default","rope_theta":5e5})",
       [](auto& c) { return c.rope_theta == 5e5; }},
      {"llama", R"("rope_theta":7,"rope_scaling":{"type":"default"})", [](auto& c) { return c.rope_theta == 7; }},
      {"llama", R"("torch_dtype":"float16")", [](auto& c) { return c.precision == Precision::bf16; }},
      {"llama", R"("dtype":"bfloat16")", [](auto& c) { return c.precision == Precision::bf16; }},
      {"llama", R"("dtype":"float32")", [](auto& c) { return c.precision == Precision::f32; }},
      {"llama", R"("num_key_value_heads":null)", [](auto& c) { return c.layer(0).groups == 6; }},
      {"llama", R"("head_dim":null)", [](auto& c) { return c.layer(0).head_dim == 8; }},
      {"llama", R"("head_dim":24)", [](auto& c) { return c.layer(0).head_dim == 24; }},
      {"llama", R"("hidden_act":"swish")", [](auto& c) { return c.activation == Activation::silu; }},
      {"llama", R"("hidden_act":"gelu_new")", [](auto& c) { return c.activation == Activation::gelu_tanh; }},
      {"llama", R"("pretraining_tp":2,"attention_dropout":0.5,"new":[1])", [](auto&) { return true; }},
      {"llama", R"("layer_types":["full_attention","full_attention"])", [](auto&) { return true; }},
      {"llama", R"("eos_token_id":[5,6],"bos_token_id":null)",
       [](auto& c) { return c.eos_token_id == 5 && c.bos_token_id == -1; }},
      {"mistral", R"("num_key_value_heads":2,"sliding_window":null)", [](auto& c) { return c.sliding_window == 0; }},
      {"mistral", R"("num_key_value_heads":null)", [](auto& c) { return c.layer(0).groups == 6; }},
      {"mistral", R"("num_key_value_heads":2,"sliding_window":9)", [](auto& c) { return c.sliding_window == 9; }},
      {"bitnet", R"("num_key_value_heads":3,"bos_token_id":1,"eos_token_id":2)",
       [](auto& c) { return c.precision == Precision::f32 && c.sub_norm && c.precision_rules.empty(); }},
      {"llama", R"("quantization_config":null)", [](auto& c) { return c.precision == Precision::f32; }},
  };
  for (const Case& each : cases) EXPECT_TRUE(each.holds(read_text(with(each.type, each.keys)))) << each.keys;
}

TEST(LlamaConfig, WhatIsNotImplementedIsRefusedByFileKeyAndValue) {
  const std::string online = R"("quant_method":"bitnet","linear_class":"autobitlinear","quantization_mode":"online")";
  const auto quantised = [&](const std::string& keys) { return R"("quantization_config":{)" + keys + "}"; };
  const std::vector<std::array<std::string, 3>> cases = {
      {R"("attention_bias":true)", "attention_bias is true", "biases"},
      {R"("mlp_bias":true)", "mlp_bias is true", "biases"},
      {R"("rope_scaling":{"type":"linear","factor":2})", "rope_scaling: type is 'linear'", "RoPE"},
      {R"("rope_scaling":{"rope_type":"llama3","factor":8})", "rope_scaling: rope_type is 'llama3'", "RoPE"},
      {R"("rope_parameters":{"rope_type":"yarn","rope_theta":1e4})", "rope_parameters: rope_type is 'yarn'", "RoPE"},
      {R"("rope_parameters":{"full_attention":{"rope_theta":1e4}})", "rope_parameters: 'full_attention'",
       "differs between layers"},
      {R"("rope_theta":1e4,"rope_parameters":{"rope_theta":5e5})", "rope_theta is 500000.0", "10000.0"},
      {R"("rope_parameters":{"partial_rotary_factor":0.5})", "partial_rotary_factor is 0.5", "part of each head"},
      {R"("partial_rotary_factor":0.5)", "partial_rotary_factor is 0.5", "part of each head"},
      {R"("rope_theta":-1)", "rope_theta", "-1"},
      {R"("num_local_experts":8)", "num_local_experts is 8", "experts"},
      {R"("final_logit_softcapping":30.0)", "final_logit_softcapping is 30.0", "capped"},
      {R"("hidden_act":"quick_gelu")", "hidden_act is 'quick_gelu'", "gelu_pytorch_tanh"},
      {R"("sliding_window":4)", "sliding_window is 4", "'llama' has no window"},
      {R"("layer_types":["full_attention","sliding_attention"])", "layer_types", "sliding_attention"},
      {R"("torch_dtype":"float8_e4m3fn")", "torch_dtype is 'float8_e4m3fn'", "bfloat16"},
      {R"("num_attention_heads":5)", "heads: 5 heads", "multiple of 8"},
      {R"("num_attention_heads":0)", "heads: 0", "1.."},
      {R"("num_attention_heads":-3)", "heads: -3", "1.."},
      {R"("num_key_value_heads":4)", "kv_heads: 4", "6 heads"},
      {R"("head_dim":12)", "head_dim 12", "multiple of 8"},
      {R"("intermediate_size":0)", "intermediate_size is 0", "at least 1"},
      {R"("num_hidden_layers":1000000)", "num_hidden_layers is 1000000", "4096"},
      {quantised(R"("quant_method":"gptq","bits":4)"), "quant_method is 'gptq'", "expected 'bitnet'"},
      {quantised(R"("quant_method":"bitnet")"), "linear_class is 'bitlinear'", "bf16 master weights"},
      {quantised(R"("quant_method":"bitnet","linear_class":"autobitlinear")"), "quantization_mode 'offline'", "master"},
      {quantised(online + R"(,"use_rms_norm":true,"rms_norm_eps":1e-5)"), "rms_norm_eps is 1e-05", "1e-06"},
      {quantised(online + R"(,"modules_to_not_convert":["layers.*"])"), "'layers.*' is a pattern", "name modules"},
      {quantised(online + R"(,"modules_to_not_convert":"lm_head")"), "modules_to_not_convert", "list"},
  };
  for (const auto& [keys, first, second] : cases) {
    // A key that is given replaces that of the small model.
    Json json = Json::parse(with("llama", ""));
    json.update(Json::parse("{" + keys + "}"));
    const TempDir dir;
    spit(dir / "config.json", json.dump());
    const std::string message = error_of<DataError>([&] { read_hf_config(dir.path()); });
    EXPECT_TRUE(message.starts_with(dir / "config.json: ")) << message;
    EXPECT_TRUE(contains(message, first) && contains(message, second)) << keys << "\n" << message;
  }
  EXPECT_TRUE(
      contains(error_of<DataError>([] { read_text(R"({"model_type":"mixtral"})"); }), "model_type is 'mixtral'"));
  EXPECT_TRUE(contains(error_of<DataError>([] { read_text(with("mistral", R"("sliding_window":0)")); }),
                       "sliding_window is 0"));
  EXPECT_TRUE(
      contains(error_of<DataError>([] { read_text(with("bitnet", R"("num_key_value_heads":3,"head_dim":16)")); }),
               "head_dim is 16"));
}

TEST(LlamaConfig, ExceptedModulesAreFoundAsTransformersFindsThem) {
  const auto read = [](const std::string& modules) {
    return read_text(with("llama", R"("quantization_config":{"quant_method":"bitnet","linear_class":"autobitlinear",)"
                                   R"("quantization_mode":"online","modules_to_not_convert":)" +
                                       modules + "}"));
  };
  const auto is_ternary = [](const ModelConfig& c, int layer, const char* name) {
    return c.layer(layer).precision_of(name) == Precision::ternary;
  };
  const ModelConfig whole = read(R"(["model.layers.1","lm_head"])"), end = read(R"(["down_proj"])"), none = read("[]");
  EXPECT_TRUE(is_ternary(whole, 0, "q_proj") && !is_ternary(whole, 1, "q_proj") && !is_ternary(whole, 1, "up_proj"));
  EXPECT_FALSE(is_ternary(whole, -1, "lm_head"));
  const ModelConfig dotted = read(R"(["model.layers.1."])");
  EXPECT_TRUE(is_ternary(dotted, 0, "q_proj") && !is_ternary(dotted, 1, "q_proj") && is_ternary(dotted, -1, "lm_head"));
  EXPECT_TRUE(is_ternary(end, 0, "up_proj") && !is_ternary(end, 0, "down_proj") && !is_ternary(end, 1, "down_proj"));
  EXPECT_TRUE(is_ternary(end, -1, "lm_head"));
  EXPECT_TRUE(none.precision_rules.empty());
  EXPECT_EQ(read(R"(["model.layers.1.mlp.up"])").precision_rules.size(), 0u) << "not at the end of a module's name";
}

TEST(LlamaConfig, TheObjectOfOursMayNotContradictTheirKeys) {
  ModelConfig c = tiny_llama();
  make_bitnet(c, true);
  const Json good = written(c);
  const std::vector<std::pair<std::function<void(Json&)>, std::string>> cases = {
      {[](Json& j) { j["rope_theta"] = j["rope_parameters"]["rope_theta"] = 5e5; },
       "rope_theta is 500000.0 and 10000.0"},
      {[](Json& j) { j["mmfree"]["rope_theta"] = 5e5; }, "rope_theta is 10000.0 and 500000.0"},
      {[](Json& j) { j["num_key_value_heads"] = 3; }, "num_key_value_heads is 3 and 2"},
      {[](Json& j) { j["hidden_act"] = "relu"; }, "hidden_act is relu and silu"},
      {[](Json& j) { j["intermediate_size"] = 64; }, "intermediate_size is 64 and 53"},
      {[](Json& j) { j["model_type"] = "bitnet"; }, "sub_norm is true and false"},
      {[](Json& j) { j.erase("quantization_config"); }, "model.layers.0.self_attn.q_proj is not ternary and ternary"},
      {[](Json& j) { j["quantization_config"]["use_rms_norm"] = false; }, "use_rms_norm of"},
      {[](Json& j) { j["mmfree"]["precision_rules"] = Json::array(); }, "lm_head is not ternary and ternary"},
      {[](Json& j) { j["mmfree"]["token"] = "mlgru", j["mmfree"]["heads"] = 1, j["mmfree"]["kv_heads"] = 1; },
       "token is attention and mlgru"},
      {[](Json& j) { j["mmfree"]["fused_gate"] = true; }, "no class of transformers computes"},
      {[](Json& j) { j["mmfree"]["precision_rules"].push_back(Json::object()); }, "a rule names no precision"},
  };
  for (const auto& [change, expected] : cases) {
    Json json = good;
    change(json);
    const std::string message = error_of<DataError>([&] { read_text(json.dump()); });
    EXPECT_TRUE(contains(message, expected)) << expected << "\n" << message;
  }
}

TEST(LlamaConfig, WhatTheirClassesDoNotComputeHasAnotherType) {
  struct Case {
    const char *name, *type;
    std::function<void(ModelConfig&)> change;
  };
  const std::vector<Case> cases = {
      {"mlgru", "mmfree", [](ModelConfig& c) { c.token = TokenKind::mlgru, c.heads = 1, c.kv_heads = 0; }},
      {"mlp", "mmfree", [](ModelConfig& c) { c.channel = ChannelKind::mlp; }},
      {"selu", "mmfree", [](ModelConfig& c) { c.activation = Activation::selu; }},
      {"norms of plain products", "mmfree", [](ModelConfig& c) { c.inner_norm = true; }},
      {"a norm of the head", "mmfree",
       [](ModelConfig& c) { make_bitnet(c, true), c.precision_rules[0].inner_norm = true; }},
      {"norms of some", "mmfree",
       [](ModelConfig& c) {
         make_bitnet(c, true), c.precision_rules.push_back({{0}, {"q_proj"}, {}, false});
       }},
      {"one scale", "mmfree", [](ModelConfig& c) { make_bitnet(c, false), c.fused_gate = true; }},
      {"one matrix that is not ternary", "llama",
       [](ModelConfig& c) {
         make_bitnet(c, false), c.fused_gate = true;
         c.precision_rules.push_back({{}, {"gate_proj"}, Precision::f32, {}});
       }},
      {"a window in one layer", "mmfree",
       [](ModelConfig& c) {
         c.layers = {LayerEntry(), LayerEntry()}, c.layers[1].sliding_window = 4, c.layers[1].repeat = 2;
       }},
      {"equal layers", "llama",
       [](ModelConfig& c) {
         c.layers = {LayerEntry(), LayerEntry()}, c.layers[1].repeat = 2, c.layers[0].precision = Precision::bf16;
       }},
      {"a window with sub norms", "mmfree", [](ModelConfig& c) { c.sub_norm = true, c.sliding_window = 4; }},
      {"sub norms of another width", "mmfree", [](ModelConfig& c) { c.sub_norm = true, c.head_dim = 16; }},
      {"large initial weights", "mistral", [](ModelConfig& c) { c.initializer_range = 2; }},
      {"the largest window", "mistral", [](ModelConfig& c) { c.sliding_window = (int64_t{1} << 31) - 1; }},
  };
  for (const Case& each : cases) {
    ModelConfig c = tiny_llama();
    each.change(c);
    c.validate();
    const Json json = written(c);
    EXPECT_EQ(json["model_type"], each.type) << each.name;
    EXPECT_EQ(yaml_of(read_text(json.dump())), yaml_of(c)) << each.name;
  }
}

}  // namespace
}  // namespace mmfree
