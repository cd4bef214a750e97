#include <string>
#include <vector>

#include "core/system/files.h"
#include "train/config/fields.h"
#include "train/formats/hf_folder.h"
#include "train/formats/json_fields.h"
#include "train/formats/llama_config.h"

namespace mmfree {

namespace {

using Json = nlohmann::json;
constexpr int64_t kMaxConfigBytes = 1 << 20;
constexpr const char *kFraming = "framing", *kResetState = "reset_state", *kExtras = "mmfree";

/// Visitor of `fields` (train/config/fields.h) that reads the keys of a JSON object. A missing key changes nothing.
struct ReadKeys {
  const JsonFields& json;

  template <class T, class Kind>
  void operator()(const char* key, T& value, const Kind& kind, const char*) const {
    if constexpr (std::is_same_v<T, std::vector<int>>) {
      for (const Json& item : json.list(key)) value.push_back(int(json.as_integer(item, key)));
    } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
      for (const Json& item : json.list(key)) value.push_back(json.as_text(item, key));
    } else if (json.has(key)) {
      if constexpr (std::is_enum_v<T>)
        value = json.choice(key, kind.options);
      else if constexpr (std::is_same_v<T, bool>)
        value = json.boolean(key, value);
      else if constexpr (std::is_floating_point_v<T>)
        value = json.number(key, value);
      else
        value = json.integer(key, value);
    }
  }
  template <class T, class Kind>
  void operator()(const char* key, std::optional<T>& value, const Kind& kind, const char* meaning) const {
    if (json.has(key)) (*this)(key, value.emplace(), kind, meaning);
  }
};

/// Visitor that writes the keys which have a value.
struct WriteKeys {
  nlohmann::ordered_json& json;

  template <class T, class Kind>
  void operator()(const char* key, const T& value, const Kind&, const char*) const {
    if constexpr (std::is_enum_v<T>)
      json[key] = name_of(value);
    else
      json[key] = value;
  }
  template <class T, class Kind>
  void operator()(const char* key, const std::optional<T>& value, const Kind& kind, const char* meaning) const {
    if (value) (*this)(key, *value, kind, meaning);
  }
};

template <class T>
void read_list(const JsonFields& extras, const char* key, std::vector<T>& list) {
  if (extras.has(key)) list.clear();
  for (const Json& item : extras.list(key)) {
    const JsonFields json(item, concat(extras.where(), key, ": "));
    fields(list.emplace_back(), ReadKeys{json});
  }
}

template <class T>
nlohmann::ordered_json written_list(std::vector<T> list) {
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (T& item : list) fields(item, WriteKeys{all.emplace_back(nlohmann::ordered_json::object())});
  return all;
}

/// Reads the keys of the object `mmfree`, which only mmfree has.
void read_extras(const JsonFields& extras, ModelConfig& c) {
  layer_fields(c, ReadKeys{extras});
  read_list(extras, "layers", c.layers);
  read_list(extras, "precision_rules", c.precision_rules);
}

nlohmann::ordered_json extras_of(ModelConfig c, const HfData& data) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  layer_fields(c, WriteKeys{json});
  json["layers"] = written_list(c.layers);
  json["precision_rules"] = written_list(c.precision_rules);
  json[kFraming] = name_of(data.framing);
  json[kResetState] = data.reset_state;
  return json;
}

/// The object `mmfree` of a config.json. @throws DataError
std::optional<JsonFields> extras_in(const JsonFields& json) {
  if (!json.has(kExtras)) return {};
  return JsonFields(json[kExtras], concat(json.where(), kExtras, ": "));
}

void check(const ModelConfig& c, const JsonFields& json) {
  try {
    c.validate();
  } catch (const ConfigError& e) {
    throw DataError(json.where() + e.what());
  }
}

/// Refuses settings of the published code that are not implemented.
void refuse_unsupported(const JsonFields& fields) {
  MMFREE_CHECK(DataError, !fields.boolean("use_short_conv", false), fields.where(),
               "use_short_conv is true: short convolutions are not implemented");
  MMFREE_CHECK(DataError, fields.integer("expand_ratio", 1) == 1, fields.where(), "expand_ratio is ",
               fields.integer("expand_ratio", 1), ": only 1 is implemented");
}

/// Hugging Face's name of the activation.
std::string hidden_act(Activation f) { return f == Activation::silu ? "swish" : name_of(f); }

/// The published code reads hidden_act, we read ours: they must be the same.
void check_activation(const JsonFields& fields, const ModelConfig& c) {
  const std::string act = fields.text("hidden_act", hidden_act(c.activation));
  MMFREE_CHECK(DataError, act == hidden_act(c.activation) || act == name_of(c.activation), fields.where(),
               "hidden_act is ", quote(act), ", but the model's activation is ", hidden_act(c.activation),
               "; name another one as `activation` in the object `mmfree`");
}

ModelConfig read_hgrn_config(const JsonFields& json) {
  refuse_unsupported(json);
  ModelConfig c;
  c.vocab_size = json.integer("vocab_size", 32000);
  c.hidden_size = json.integer("hidden_size", 2048);
  c.num_hidden_layers = json.integer("num_hidden_layers", 24);
  c.intermediate_size = json.integer("intermediate_size", 0);
  c.hidden_ratio = json.integer("hidden_ratio", 4);
  c.rms_norm_eps = json.number("rms_norm_eps", 1e-6);
  c.initializer_range = json.number("initializer_range", 0.02);
  c.use_lower_bound = json.boolean("use_lower_bound", true);
  c.tie_word_embeddings = json.boolean("tie_word_embeddings", false);
  c.max_position_embeddings = json.integer("max_position_embeddings", 2048);
  c.bos_token_id = json.token_id("bos_token_id", 1);
  c.eos_token_id = json.token_id("eos_token_id", 2);
  if (const auto extras = extras_in(json)) read_extras(*extras, c);
  check_activation(json, c);
  check(c, json);
  return c;
}

/// Adds what the object `mmfree` says to a model that transformers' keys describe. It must not change what the model
/// computes, or transformers would compute something else.
void refine(ModelConfig& c, const JsonFields& json) {
  const auto extras = extras_in(json);
  if (!extras) return;
  ModelConfig ours = c;
  read_extras(*extras, ours);
  ours.hidden_ratio = extras->integer("hidden_ratio", ours.hidden_ratio);
  ours.use_lower_bound = extras->boolean("use_lower_bound", ours.use_lower_bound);
  check(ours, *extras);
  const std::string difference = llama_difference(c, ours);
  MMFREE_CHECK(DataError, difference.empty(), json.where(), difference, " by the object `", kExtras,
               "`; correct one of them, or remove the object");
  MMFREE_CHECK(DataError, llama_form(ours), extras->where(),
               "describes a model that no class of transformers computes");
  c = std::move(ours);
}

/// An object with the keys of hgrn_bit.
nlohmann::ordered_json hgrn_keys(const ModelConfig& c) {
  return {{"vocab_size", c.vocab_size},
          {"hidden_size", c.hidden_size},
          {"num_hidden_layers", c.num_hidden_layers},
          {"intermediate_size",
           c.intermediate_size ? nlohmann::ordered_json(c.intermediate_size) : nlohmann::ordered_json()},
          {"hidden_ratio", c.hidden_ratio},
          {"hidden_act", hidden_act(c.activation)},
          {"attn_mode", "fused_recurrent"},
          {"num_heads", 1},
          {"expand_ratio", 1},
          {"use_short_conv", false},
          {"conv_size", 4},
          {"share_conv_kernel", true},
          {"use_lower_bound", c.use_lower_bound},
          {"rms_norm_eps", c.rms_norm_eps},
          {"initializer_range", c.initializer_range},
          {"max_position_embeddings", c.max_position_embeddings},
          {"fuse_cross_entropy", true},
          {"use_cache", true},
          {"tie_word_embeddings", c.tie_word_embeddings}};
}

nlohmann::ordered_json id_or_null(int64_t id) { return id < 0 ? nlohmann::ordered_json() : nlohmann::ordered_json(id); }

/// Calls read(json) with the keys of `dir`/config.json.
template <class Read>
auto read_config_file(const std::string& dir, const Read& read) {
  const std::string path = dir + "/config.json";
  const Json json = parse_json(read_file(path, kMaxConfigBytes), path);
  return read(JsonFields(json, path + ": "));
}

}  // namespace

const char* transformers_version(const ModelConfig& c) { return llama_form(c) ? "5.0.0" : "4.40.2"; }

const Architecture& architecture_of(const ModelConfig& c) {
  if (const auto form = llama_form(c)) return llama_architecture(form->model_type, form->fused_gate);
  ModelConfig d;  // the defaults are the published architecture
  d.intermediate_size = c.intermediate_size;
  bool published = c.uniform() && c.precision_rules.empty();
  zip_layer_keys(c, d, [&](const auto& has, const auto& expected) { published &= has == expected; });
  return published ? hgrn_bit_architecture() : own_architecture();
}

HfModel read_hf_model(const std::string& dir) {
  return read_config_file(dir, [](const JsonFields& json) -> HfModel {
    const std::string type = json.text("model_type", "");
    for (const Architecture* known : {&hgrn_bit_architecture(), &own_architecture()})
      if (type == known->model_type) return {read_hgrn_config(json), known};
    MMFREE_CHECK(DataError, is_llama_type(type), json.where(), "model_type is ", quote(type),
                 ", expected hgrn_bit (a MatMul-free model), mmfree, llama, mistral or bitnet");
    ModelConfig c = read_llama_config(json, type);
    check(c, json);
    refine(c, json);
    return {c, &llama_architecture(type, c.layer(0).fused_gate)};
  });
}

ModelConfig read_hf_config(const std::string& dir) { return read_hf_model(dir).config; }

HfData read_hf_data(const std::string& dir) {
  return read_config_file(dir, [](const JsonFields& json) {
    HfData data;
    data.pad_token_id = int(json.token_id("pad_token_id", -1));
    const auto extras = extras_in(json);
    if (!extras) return data;
    if (extras->has(kFraming))
      data.framing = extras->choice(kFraming, std::vector(std::begin(kAllFramings), std::end(kAllFramings)));
    data.reset_state = extras->boolean(kResetState, false);
    return data;
  });
}

void write_hf_config(const std::string& dir, const ModelConfig& config, const std::string& torch_dtype,
                     const HfData& data) {
  MMFREE_CHECK(UsageError, torch_dtype == "float32" || torch_dtype == "bfloat16" || torch_dtype == "float16",
               "torch_dtype ", quote(torch_dtype), ", expected float32, bfloat16 or float16");
  const Architecture& architecture = architecture_of(config);
  const auto form = llama_form(config);
  nlohmann::ordered_json json = {{"architectures", nlohmann::ordered_json::array({architecture.class_name})},
                                 {"model_type", architecture.model_type}};
  json.update(form ? llama_keys(config, *form) : hgrn_keys(config));
  json["pad_token_id"] = id_or_null(data.pad_token_id);
  json["bos_token_id"] = id_or_null(config.bos_token_id);
  json["eos_token_id"] = id_or_null(config.eos_token_id);
  json["torch_dtype"] = torch_dtype;
  json["transformers_version"] = transformers_version(config);
  json[kExtras] = extras_of(config, data);
  if (form) {  // their classes lack these
    json[kExtras]["hidden_ratio"] = config.hidden_ratio;
    json[kExtras]["use_lower_bound"] = config.use_lower_bound;
  } else {
    json[kExtras].erase("intermediate_size");
  }
  write_file(dir + "/config.json", json.dump(2) + "\n");
}

}  // namespace mmfree
