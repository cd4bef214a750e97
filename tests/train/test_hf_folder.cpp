#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/system/folder_lock.h"
#include "layers/parameters.h"
#include "tests/support/compare.h"
#include "tests/support/failing_rename.h"
#include "tests/support/golden.h"
#include "tests/support/model_variants.h"
#include "tests/support/temp_dir.h"
#include "train/formats/hf_folder.h"
#include "train/formats/llama_config.h"

namespace mmfree {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const DataError& e) {
    return e.what();
  } catch (const std::exception& e) {
    return concat("another exception: ", e.what());
  }
  return "nothing thrown";
}

TEST(HfConfig, reads_what_it_writes_with_all_keys_of_the_published_models) {
  TempDir dir;
  ModelConfig c;
  c.vocab_size = 777;
  c.hidden_size = 96;
  c.num_hidden_layers = 5;
  c.intermediate_size = 333;
  c.hidden_ratio = 3;
  c.rms_norm_eps = 1.0 / 3e5;
  c.initializer_range = 0.0123;
  c.use_lower_bound = false;
  c.gate_order = GateOrder::paper;
  c.precision = Precision::bf16;
  c.precision_rules = {{{0, 4}, {"i_proj", "down_proj"}, Precision::f32}, {{}, {"lm_head"}, Precision::ternary}};
  c.max_position_embeddings = 123;
  c.bos_token_id = 7;
  c.eos_token_id = -1;
  write_hf_config(dir.path(), c, "bfloat16");
  const ModelConfig r = read_hf_config(dir.path());
  EXPECT_EQ(r.vocab_size, 777);
  EXPECT_EQ(r.hidden_size, 96);
  EXPECT_EQ(r.num_hidden_layers, 5);
  EXPECT_EQ(r.intermediate_size, 333);
  EXPECT_EQ(r.hidden_ratio, 3);
  EXPECT_EQ(r.rms_norm_eps, 1.0 / 3e5);
  EXPECT_EQ(r.initializer_range, 0.0123);
  EXPECT_FALSE(r.use_lower_bound);
  EXPECT_EQ(r.gate_order, GateOrder::paper);
  EXPECT_EQ(r.max_position_embeddings, 123);
  EXPECT_EQ(r.bos_token_id, 7);
  EXPECT_EQ(r.eos_token_id, -1);
  for (int layer = 0; layer < 5; ++layer)
    for (const char* name : {"i_proj", "down_proj", "o_proj"})
      EXPECT_EQ(r.layer(layer).precision_of(name), c.layer(layer).precision_of(name)) << layer << name;
  EXPECT_EQ(r.layer(-1).precision_of("lm_head"), Precision::ternary);
  ASSERT_EQ(r.precision_rules.size(), 2u);
  EXPECT_EQ(r.precision_rules[0].layers, c.precision_rules[0].layers);
  EXPECT_EQ(r.precision_rules[0].projections, c.precision_rules[0].projections);

  const Json json = Json::parse(slurp(dir / "config.json"));
  for (const char* key : {"architectures",
                          "attn_mode",
                          "bos_token_id",
                          "conv_size",
                          "eos_token_id",
                          "expand_ratio",
                          "fuse_cross_entropy",
                          "hidden_act",
                          "hidden_ratio",
                          "hidden_size",
                          "initializer_range",
                          "intermediate_size",
                          "max_position_embeddings",
                          "model_type",
                          "num_heads",
                          "num_hidden_layers",
                          "rms_norm_eps",
                          "share_conv_kernel",
                          "tie_word_embeddings",
                          "torch_dtype",
                          "transformers_version",
                          "use_cache",
                          "use_lower_bound",
                          "use_short_conv",
                          "vocab_size"})
    EXPECT_TRUE(json.contains(key)) << key;
  EXPECT_EQ(json["architectures"], Json({"MMFreeForCausalLM"})) << "the published classes compute something else";
  EXPECT_EQ(json["model_type"], "mmfree");
  EXPECT_EQ(json["torch_dtype"], "bfloat16");
  EXPECT_EQ(read_hf_data(dir.path()), HfData{});
  for (const Framing framing : kAllFramings) {
    const HfData data{framing, framing == Framing::bos, framing == Framing::eos ? 3 : -1};
    write_hf_config(dir.path(), c, "float32", data);
    EXPECT_EQ(read_hf_data(dir.path()), data);
  }
  EXPECT_THROW(write_hf_config(dir.path(), c, "int8"), UsageError);
}

TEST(HfConfig, a_model_that_hgrn_bit_cannot_say_has_a_type_of_its_own_and_keeps_every_layer_key) {
  for (const auto& [name, change] : model_settings()) {
    SCOPED_TRACE(name);
    TempDir dir;
    ModelConfig c = tiny_model_config();
    change(c);
    write_hf_config(dir.path(), c, "float32");
    const ModelConfig r = read_hf_config(dir.path());
    EXPECT_EQ(r.use_lower_bound, c.use_lower_bound);
    EXPECT_EQ(r.tie_word_embeddings, c.tie_word_embeddings);
    for (int l = -1; l < int(c.num_hidden_layers); ++l) {
      LayerConfig a = c.layer(l), b = r.layer(l);
      zip_layer_keys(a, b, [](const auto& x, const auto& y) { EXPECT_EQ(x, y); });
      EXPECT_EQ(a.precision_of("o_proj"), b.precision_of("o_proj"));
    }
    const bool own = c.channel != ChannelKind::glu || c.activation != Activation::silu || !c.inner_norm ||
                     !c.uniform() || c.gate_order != GateOrder::reference || c.precision != Precision::ternary ||
                     !c.precision_rules.empty() || c.token != TokenKind::mlgru || !c.fused_gate || c.sub_norm;
    const Json json = Json::parse(slurp(dir / "config.json"));
    if (llama_form(c)) continue;  // see test_llama_config.cpp
    EXPECT_EQ(json["model_type"], own ? "mmfree" : "hgrn_bit");
    EXPECT_EQ(json["architectures"], Json({own ? "MMFreeForCausalLM" : "HGRNBitForCausalLM"}));
  }
}

TEST(HfConfig, takes_what_other_writers_leave_out_or_add) {
  TempDir dir;
  spit(dir / "config.json",
       R"({"model_type":"hgrn_bit","intermediate_size":null,"bos_token_id":null,"eos_token_id":[5,6],"new":{"a":[1]},)"
       R"("expand_ratio":1,"use_short_conv":false,"mmfree":null})");
  const ModelConfig c = read_hf_config(dir.path());
  EXPECT_EQ(c.hidden_size, 2048);
  EXPECT_EQ(c.num_hidden_layers, 24);
  EXPECT_EQ(c.intermediate_size, 0);
  EXPECT_EQ(c.intermediate(), 5632);  // 256 ceil(trunc(2048 * 4 * 2 / 3) / 256)
  EXPECT_EQ(c.bos_token_id, -1);
  EXPECT_EQ(c.eos_token_id, 5);
  write_hf_config(dir.path(), c, "float32");
  EXPECT_TRUE(Json::parse(slurp(dir / "config.json"))["intermediate_size"].is_null());
  EXPECT_EQ(read_hf_config(dir.path()).intermediate_size, 0);
}

TEST(HfConfig, refuses_other_models_and_bad_values_naming_the_key) {
  TempDir dir;
  EXPECT_THROW(read_hf_config(dir.path()), MissingError);
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"("model_type":"qwen2")", "model_type"},
      {R"("use_short_conv":true)", "use_short_conv"},
      {R"("expand_ratio":2)", "expand_ratio"},
      {R"("hidden_act":"gelu")", "hidden_act"},
      {R"("model_type":"mmfree","hidden_act":"gelu")", "hidden_act"},
      {R"("model_type":"mmfree","hidden_act":"swish","mmfree":{"activation":"relu"})", "hidden_act"},
      {R"("mmfree":{"activation":"swiglu"})", "activation"},
      {R"("mmfree":{"layers":[{"token":"nothing"}]})", "token"},
      {R"("mmfree":{"layers":[{"repeat":3}]})", "num_hidden_layers"},
      {R"("tie_word_embeddings":"yes")", "tie_word_embeddings"},
      {R"("hidden_size":"64")", "hidden_size"},
      {R"("hidden_size":64.5)", "hidden_size"},
      {R"("hidden_size":-1)", "hidden_size"},
      {R"("hidden_size":18446744073709551615)", "hidden_size"},
      {R"("hidden_size":true)", "hidden_size"},
      {R"("hidden_size":-2147483648)", "hidden_size"},
      {R"("model_type":5)", "model_type"},
      {R"("num_hidden_layers":0)", "num_hidden_layers"},
      {R"("rms_norm_eps":"1e-6")", "rms_norm_eps"},
      {R"("rms_norm_eps":1e999)", "JSON"},
      {R"("rms_norm_eps":0)", "rms_norm_eps"},
      {R"("eos_token_id":32000)", "eos_token_id"},
      {R"("eos_token_id":["a"])", "eos_token_id"},
      {R"("vocab_size":10,"vocab_size":20)", "vocab_size"},
      {R"("mmfree":[])", "mmfree"},
      {R"("mmfree":{"gate_order":"other"})", "gate_order"},
      {R"("mmfree":{"precision":"int4"})", "precision"},
      {R"("mmfree":{"precision_rules":{}})", "precision_rules"},
      {R"("mmfree":{"precision_rules":[3]})", "precision_rules"},
      {R"("mmfree":{"precision_rules":[{"layers":["0"]}]})", "layers"},
      {R"("mmfree":{"precision_rules":[{"layers":[24]}]})", "layer 24"},
      {R"("mmfree":{"precision_rules":[{"projections":["q_proj"]}]})", "q_proj"},
  };
  for (const auto& [text, key] : cases) {
    const std::string type = text.find("model_type") == std::string::npos ? R"("model_type":"hgrn_bit",)" : "";
    spit(dir / "config.json", "{" + type + text + "}");
    const std::string message = error_of([&] { read_hf_config(dir.path()); });
    EXPECT_EQ(message.find(dir / "config.json"), 0u) << text << ": " << message;
    EXPECT_NE(message.find(key), std::string::npos) << text << ": " << message;
  }
  for (const std::string text : {"", "{", "[]", "{}", "null", "\"hgrn_bit\""}) {
    spit(dir / "config.json", text);
    EXPECT_THROW(read_hf_config(dir.path()), DataError) << text;
  }
}

/// A small model's tensors, and their export.
struct Export {
  TempDir dir;
  ModelConfig config;
  std::vector<std::pair<std::string, Shape>> shapes = {
      {"model.embeddings.weight", {7, 5}}, {"a", {3}}, {"empty", {0, 5}}, {"model.norm.weight", {5}}, {"z", {4, 3, 2}}};
  std::map<std::string, Tensor> tensors;

  Export() {
    uint32_t state = 12345;
    for (const auto& [name, shape] : shapes) {
      Tensor t(shape, DType::f32);
      for (int64_t i = 0; i < t.size(); ++i) {
        state = state * 1664525u + 1013904223u;
        t.mut<float>()[i] = float(int32_t(state)) * 0x1p-28f;
      }
      tensors[name] = t;
    }
  }
  void write(const HfWriteOptions& options) {
    write_hf_folder(
        dir / "out", config, shapes, [&](const std::string& name) { return tensors.at(name); }, options);
  }
};

TEST(HfFolder, single_and_sharded_round_trip_bit_exact_in_f32) {
  for (const int64_t most : {int64_t(1) << 30, int64_t(100), int64_t(1)}) {
    Export e;
    e.write({.max_shard_bytes = most, .tokenizer_model = std::string("pieces\0", 7)});
    const std::string out = e.dir / "out";
    const HfFolder folder(out);
    EXPECT_EQ(folder.names(),
              (std::vector<std::string>{"a", "empty", "model.embeddings.weight", "model.norm.weight", "z"}));
    for (const auto& [name, truth] : e.tensors) {
      EXPECT_EQ(folder.shape(name), truth.shape());
      const Tensor t = folder.read(name, DType::f32);
      EXPECT_TRUE(!t.bytes() || std::memcmp(t.raw(), truth.raw(), size_t(t.bytes())) == 0) << name;
    }
    EXPECT_FALSE(folder.has("b"));
    EXPECT_THROW(folder.read("b", DType::f32), DataError);
    EXPECT_EQ(slurp(out + "/tokenizer.model"), std::string("pieces\0", 7));
    EXPECT_EQ(slurp(out + "/README.md").substr(0, 4), "---\n");
    EXPECT_EQ(Json::parse(slurp(out + "/generation_config.json"))["eos_token_id"], 2);
    EXPECT_EQ(read_hf_config(out).hidden_size, e.config.hidden_size);
    EXPECT_EQ(e.dir.files(), 1u);
    EXPECT_EQ(fs::exists(out + "/model.safetensors"), most > 1000);
    if (most == 100) {
      const Json index = Json::parse(slurp(out + "/model.safetensors.index.json"));
      EXPECT_EQ(index["metadata"]["total_size"], 4 * (35 + 3 + 0 + 5 + 24));
      EXPECT_EQ(index["weight_map"]["model.embeddings.weight"], "model-00001-of-00003.safetensors");
      EXPECT_EQ(index["weight_map"]["model.norm.weight"], "model-00002-of-00003.safetensors");
      EXPECT_EQ(index["weight_map"]["z"], "model-00003-of-00003.safetensors");
    }
  }
}

TEST(HfFolder, half_precisions_store_the_nearest_value) {
  for (const auto& [torch_dtype, digits] : {std::pair{"bfloat16", 8}, {"float16", 11}}) {
    Export e;
    e.write({.torch_dtype = torch_dtype, .max_shard_bytes = 64});
    const HfFolder folder(e.dir / "out");
    EXPECT_EQ(Json::parse(slurp(e.dir / "out/config.json"))["torch_dtype"], torch_dtype);
    for (const auto& [name, truth] : e.tensors) {
      const Tensor t = folder.read(name, DType::f64);
      for (int64_t i = 0; i < t.size(); ++i) {
        int exponent;
        const double x = truth.data<float>()[i], fraction = std::frexp(x, &exponent);
        const double rounded = std::ldexp(std::nearbyint(std::ldexp(fraction, digits)), exponent - digits);
        EXPECT_EQ(t.data<double>()[i], rounded) << torch_dtype << ' ' << name << ' ' << i;
      }
    }
  }
}

TEST(HfFolder, what_does_not_read_back_never_replaces_another) {
  for (const char* torch_dtype : {"float32", "bfloat16", "float16"}) {
    Export e;
    e.write({.torch_dtype = torch_dtype});
    const std::string old = slurp(e.dir / "out/model.safetensors");
    int calls = 0;
    const auto changing = [&](const std::string& name) {
      Tensor t = e.tensors.at(name).clone();
      if (name == "z" && ++calls == 2) t.mut<float>()[23] *= 1.01f;
      return t;
    };
    EXPECT_THROW(write_hf_folder(e.dir / "out", e.config, e.shapes, changing,
                                 {.torch_dtype = torch_dtype, .max_shard_bytes = 100, .overwrite = true}),
                 Error);
    EXPECT_EQ(calls, 2);
    EXPECT_EQ(slurp(e.dir / "out/model.safetensors"), old);
    EXPECT_EQ(e.dir.files(), 1u);
  }
}

TEST(HfFolder, a_failed_export_leaves_the_old_folder_or_none) {
  Export e;
  e.shapes.push_back({"missing", {2}});
  EXPECT_THROW(e.write({}), std::out_of_range);
  EXPECT_FALSE(fs::exists(e.dir / "out"));
  EXPECT_EQ(e.dir.files(), 0u);

  e.shapes.pop_back();
  fs::create_directory(e.dir / "out");
  const std::string others[] = {"out.tmp", "out.mmfree-tmp-1", "out.mmfree-tmp-1-x", "out.mmfree-tmp-",
                                "o.mmfree-tmp-1-0"};
  for (const std::string& other : others) {
    fs::create_directory(e.dir / other);
    spit(e.dir / other + "/mine", "x");
  }
  for (const char* left : {"out.mmfree-tmp-1-0", "out.mmfree-tmp-1-1"}) {
    fs::create_directory(e.dir / left);
    spit(e.dir / left + "/rest of a killed export", "x");
  }
  {
    const FolderLock under_way(e.dir / "out.mmfree-tmp-1-1");
    e.write({});
  }
  EXPECT_FALSE(fs::exists(e.dir / "out/rest of a killed export"));
  EXPECT_FALSE(fs::exists(e.dir / "out.mmfree-tmp-1-0"));
  EXPECT_EQ(fs::remove_all(e.dir / "out.mmfree-tmp-1-1"), 2u);
  for (const std::string& other : others) {
    EXPECT_EQ(slurp(e.dir / other + "/mine"), "x");
    fs::remove_all(e.dir / other);
  }
  EXPECT_THROW(e.write({}), CreateError);
  const std::string old = slurp(e.dir / "out/model.safetensors");
  e.shapes[1].second = {4};
  EXPECT_THROW(e.write({.overwrite = true}), ShapeError);
  EXPECT_EQ(slurp(e.dir / "out/model.safetensors"), old);
  e.shapes[1].second = {3};
  e.tensors.at("a").mut<float>()[0] += 1;
  e.write({.overwrite = true});
  EXPECT_NE(slurp(e.dir / "out/model.safetensors"), old);
  EXPECT_EQ(e.dir.files(), 1u) << "the old folder is gone";
  EXPECT_EQ(HfFolder(e.dir / "out").names().size(), 5u);

  e.shapes.push_back(e.shapes[0]);
  fs::remove_all(e.dir / "out");
  EXPECT_THROW(e.write({}), DataError) << "a name twice";
  EXPECT_THROW(e.write({.torch_dtype = "float8"}), UsageError);
}

TEST(HfFolder, an_older_folder_is_replaced_where_names_cannot_be_exchanged) {
  Export e;
  e.write({});
  const std::string old = slurp(e.dir / "out/model.safetensors");
  exchange_error = EIO;
  EXPECT_THROW(e.write({.overwrite = true}), IoError) << "that is no reason to try it otherwise";
  EXPECT_EQ(e.dir.files(), 1u);
  exchange_error = EINVAL;
  fs::create_directory(e.dir / "out.old");
  spit(e.dir / "out.old/mine", "not to be touched");
  e.tensors.at("a").mut<float>()[0] += 1;
  // All files are in place before; then come the old folder's rename, the new one's, and the old one's back.
  int failures = 0;
  for (int n = 0;; ++n) {
    renames_until_failure = n;
    try {
      e.write({.overwrite = true});
      break;
    } catch (const IoError&) {
      ++failures;
      EXPECT_EQ(slurp(e.dir / "out/model.safetensors"), old) << n;
      EXPECT_EQ(e.dir.files(), 2u) << n;
    }
  }
  renames_until_failure = -1;
  exchange_error = 0;
  EXPECT_GT(failures, 2);
  EXPECT_NE(slurp(e.dir / "out/model.safetensors"), old);
  EXPECT_EQ(HfFolder(e.dir / "out").names().size(), 5u);
  EXPECT_EQ(slurp(e.dir / "out.old/mine"), "not to be touched");
  EXPECT_EQ(e.dir.files(), 2u);
}

TEST(HfFolder, a_name_too_long_to_work_beside_is_refused) {
  Export e;
  EXPECT_THROW(write_hf_folder(e.dir / std::string(253, 'n'), e.config, e.shapes,
                               [&](const std::string& name) { return e.tensors.at(name); }, {}),
               CreateError);
  EXPECT_EQ(e.dir.files(), 0u);
}

TEST(HfFolder, a_new_folder_may_be_deep_and_leaves_no_trace_if_it_fails) {
  Export e;
  const auto write = [&] {
    write_hf_folder(e.dir / "deep/er/out", e.config, e.shapes,
                    [&](const std::string& name) { return e.tensors.at(name); }, {});
  };
  e.shapes.push_back({"missing", {2}});
  EXPECT_THROW(write(), std::out_of_range);
  EXPECT_EQ(e.dir.files(), 0u);
  e.shapes.pop_back();
  e.config.num_hidden_layers = 0;
  EXPECT_THROW(write(), DataError) << "a configuration that nobody could load";
  EXPECT_EQ(e.dir.files(), 0u);
  e.config.num_hidden_layers = 1;
  write();
  EXPECT_EQ(HfFolder(e.dir / "deep/er/out").names().size(), 5u);
}

TEST(HfFolder, says_when_the_folder_cannot_be) {
  Export e;
  spit(e.dir / "out", "a file");
  EXPECT_THROW(e.write({.overwrite = true}), CreateError);
  const auto below = [&] {
    write_hf_folder(e.dir / "out/below", e.config, e.shapes,
                    [&](const std::string& name) { return e.tensors.at(name); }, {});
  };
  EXPECT_THROW(below(), CreateError);
  EXPECT_EQ(slurp(e.dir / "out"), "a file");
}

TEST(HfFolder, its_card_tells_of_settings_that_others_do_not_know) {
  Export e;
  e.config.precision = Precision::bf16;
  e.write({});
  EXPECT_NE(slurp(e.dir / "out/README.md").find("precision `bf16`"), std::string::npos);
  EXPECT_NE(slurp(e.dir / "out/README.md").find("\n- mmfree\n"), std::string::npos);
}

TEST(HfFolder, refuses_an_index_that_lies) {
  Export e;
  e.write({.max_shard_bytes = 100});
  const std::string out = e.dir / "out", index_path = out + "/model.safetensors.index.json";
  const Json good = Json::parse(slurp(index_path));
  fs::copy_file(out + "/model-00001-of-00003.safetensors", e.dir / "outside.safetensors");
  const auto refused = [&](const Json& index, const std::string& why) {
    spit(index_path, index.dump());
    const std::string message = error_of([&] { HfFolder folder(out); });
    EXPECT_NE(message.find(why), std::string::npos) << index.dump() << ": " << message;
  };
  const std::vector<std::string> escapes = {
      "../outside.safetensors",      e.dir / "outside.safetensors", "..",   ".",      "",
      "x/../../outside.safetensors", "sub\\outside.safetensors",    "a..b", ".hidden"};
  for (const std::string& file : escapes) {
    Json index = good;
    index["weight_map"]["model.embeddings.weight"] = file;
    refused(index, "not a plain file name");
  }
  Json index = good;
  index["weight_map"]["model.embeddings.weight"] = std::string("model-00001-of-00003.safetensors\0x", 34);
  refused(index, "not a plain file name");
  index = good;
  index["weight_map"]["model.embeddings.weight"] = 3;
  refused(index, "string");
  index = good;
  index["weight_map"]["a"] = "model-00003-of-00003.safetensors";
  refused(index, "not in its shard");
  index = good;
  index["weight_map"]["absent"] = "model-00003-of-00003.safetensors";
  refused(index, "not in its shard");
  index = good;
  index["weight_map"].erase("a");
  refused(index, "does not name");
  refused({{"weight_map", Json::array()}}, "weight_map");
  refused(Json::object(), "weight_map");
  refused(Json::array(), "weight_map");

  fs::copy_file(out + "/model-00001-of-00003.safetensors", out + "/copy.safetensors");
  index = good;
  index["weight_map"]["model.embeddings.weight"] = "copy.safetensors";
  spit(index_path, index.dump());
  EXPECT_NO_THROW(HfFolder{out});
  fs::copy_file(out + "/model-00002-of-00003.safetensors", out + "/both.safetensors");
  index["weight_map"]["a"] = "both.safetensors";
  refused(index, "places in another shard");

  spit(index_path, good.dump());
  fs::remove(out + "/model-00002-of-00003.safetensors");
  EXPECT_THROW(HfFolder{out}, MissingError);
  fs::remove(index_path);
  EXPECT_THROW(HfFolder{out}, MissingError);
}

TEST(HfFolder, golden_models_survive_export_and_import) {
  std::vector<std::string> sources = golden_dirs();
  const std::vector<std::string> theirs = transformers_dirs();
  sources.insert(sources.end(), theirs.begin(), theirs.end());
  for (const std::string& source : sources) {
    SCOPED_TRACE(source);
    const Golden g(source);
    TempDir dir;
    NamedShapes shapes;
    for (const ParamSpec& spec : parameter_specs(g.config)) shapes.emplace_back(spec.name, spec.shape);
    const auto get = [&](const std::string& name) { return g.parameter(name, DType::f32); };
    write_hf_folder(dir / "out/", g.config, shapes, get, {.max_shard_bytes = 30000});
    const HfFolder copy(dir / "out");
    const HfModel model = read_hf_model(dir / "out");
    if (g.hf.architecture == model.architecture) {
      EXPECT_EQ(copy.names(), g.model.names());
    }
    for (const auto& [name, shape] : shapes) {
      const Tensor b = from_foreign(*model.architecture, name,
                                    [&](const std::string& theirs) { return copy.read(theirs, DType::f32); });
      EXPECT_TRUE(same_bits(get(name), b)) << name;
    }
  }
}

}  // namespace
}  // namespace mmfree
