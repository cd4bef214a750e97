#include <limits>
#include <string>
#include <vector>

#include "core/system/files.h"
#include "train/config/fields.h"
#include "train/formats/hf_folder.h"
#include "train/formats/strict_json.h"

namespace mmfree {

namespace {

using Json = nlohmann::json;
constexpr int64_t kMaxConfigBytes = 1 << 20;
constexpr const char *kFraming = "framing", *kResetState = "reset_state";

/// Typed access to one JSON object. Every error message starts with `where`, which names the file.
class Fields {
 public:
  Fields(const Json& object, std::string where) : object_(object), where_(std::move(where)) {
    MMFREE_CHECK(DataError, object_.is_object(), where_, "expected a JSON object");
  }

  int64_t integer(const char* key, int64_t otherwise) const {
    return has(key) ? as_integer(object_[key], key) : otherwise;
  }
  double number(const char* key, double otherwise) const {
    if (!has(key)) return otherwise;
    MMFREE_CHECK(DataError, object_[key].is_number(), where_, key, " must be a number");
    return object_[key].get<double>();
  }
  bool boolean(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    MMFREE_CHECK(DataError, object_[key].is_boolean(), where_, key, " must be true or false");
    return object_[key].get<bool>();
  }
  std::string text(const char* key, const std::string& otherwise) const {
    return has(key) ? as_text(object_[key], key) : otherwise;
  }
  /// A token id; of a list the first; -1 for null or an empty list.
  int64_t token_id(const char* key, int64_t otherwise) const {
    if (!object_.contains(key)) return otherwise;
    const Json& value = object_[key];
    if (value.is_null() || (value.is_array() && value.empty())) return -1;
    return as_integer(value.is_array() ? value[0] : value, key);
  }
  /// The items of a list; none if the key is missing.
  std::vector<Json> list(const char* key) const {
    if (!has(key)) return {};
    MMFREE_CHECK(DataError, object_[key].is_array(), where_, key, " must be a list");
    return object_[key].get<std::vector<Json>>();
  }

  int64_t as_integer(const Json& value, const char* key) const {
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
    MMFREE_CHECK(DataError, value.is_number_integer(), where_, key, " must be an integer");
    const bool fits =
        value.is_number_unsigned() ? value.get<uint64_t>() <= uint64_t(kMost) : value.get<int64_t>() >= -kMost;
    MMFREE_CHECK(DataError, fits, where_, key, " must lie within -", kMost, "..", kMost);
    return value.get<int64_t>();
  }
  std::string as_text(const Json& value, const char* key) const {
    MMFREE_CHECK(DataError, value.is_string(), where_, key, " must be a string");
    return value.get<std::string>();
  }
  /// The value among `values` whose name the key gives.
  template <class Enum>
  Enum choice(const char* key, const std::vector<Enum>& values) const {
    const std::string name = as_text(object_[key], key);
    std::string known;
    for (const Enum value : values) {
      if (name == name_of(value)) return value;
      known += concat(' ', name_of(value));
    }
    throw DataError(concat(where_, key, " is ", quote(name), ", expected one of", known));
  }
  bool has(const char* key) const { return object_.contains(key) && !object_[key].is_null(); }
  const Json& operator[](const char* key) const { return object_[key]; }

 private:
  const Json& object_;
  std::string where_;
};

/// Visitor of `fields` (train/config/fields.h) that reads the keys of a JSON object. A missing key changes nothing.
struct ReadKeys {
  const Fields& json;

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
void read_list(const Fields& extras, const char* key, const std::string& where, std::vector<T>& list) {
  for (const Json& item : extras.list(key)) {
    const Fields json(item, concat(where, key, ": "));
    fields(list.emplace_back(), ReadKeys{json});
  }
}

template <class T>
nlohmann::ordered_json written_list(std::vector<T> list) {
  nlohmann::ordered_json all = nlohmann::ordered_json::array();
  for (T& item : list) fields(item, WriteKeys{all.emplace_back(nlohmann::ordered_json::object())});
  return all;
}

/// Reads the keys that only mmfree has.
void read_extras(const Fields& extras, const std::string& where, ModelConfig& c) {
  layer_fields(c, ReadKeys{extras});
  read_list(extras, "layers", where, c.layers);
  read_list(extras, "precision_rules", where, c.precision_rules);
}

nlohmann::ordered_json extras_of(ModelConfig c, const HfData& data) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  layer_fields(c, WriteKeys{json});
  json.erase("intermediate_size");  // Hugging Face's format has it
  json["layers"] = written_list(c.layers);
  json["precision_rules"] = written_list(c.precision_rules);
  json[kFraming] = name_of(data.framing);
  json[kResetState] = data.reset_state;
  return json;
}

/// Refuses settings of the published code that are not implemented.
void refuse_unsupported(const Fields& fields, const std::string& where) {
  MMFREE_CHECK(DataError, !fields.boolean("use_short_conv", false), where,
               "use_short_conv is true: short convolutions are not implemented");
  MMFREE_CHECK(DataError, fields.integer("expand_ratio", 1) == 1, where, "expand_ratio is ",
               fields.integer("expand_ratio", 1), ": only 1 is implemented");
}

/// Hugging Face's name of the activation.
std::string hidden_act(Activation f) { return f == Activation::silu ? "swish" : name_of(f); }

/// The published code reads hidden_act, we read ours: they must be the same.
void check_activation(const Fields& fields, const std::string& where, const ModelConfig& c) {
  const std::string act = fields.text("hidden_act", hidden_act(c.activation));
  MMFREE_CHECK(DataError, act == hidden_act(c.activation) || act == name_of(c.activation), where, "hidden_act is ",
               quote(act), ", but the model's activation is ", hidden_act(c.activation),
               "; name another one as `activation` in the object `mmfree`");
}

nlohmann::ordered_json id_or_null(int64_t id) { return id < 0 ? nlohmann::ordered_json() : nlohmann::ordered_json(id); }

}  // namespace

const Architecture& architecture_of(const ModelConfig& c) {
  ModelConfig d;  // the defaults are the published architecture
  d.intermediate_size = c.intermediate_size;
  bool published = c.uniform() && c.precision_rules.empty();
  zip_layer_keys(c, d, [&](const auto& has, const auto& expected) { published &= has == expected; });
  return published ? hgrn_bit_architecture() : own_architecture();
}

ModelConfig read_hf_config(const std::string& dir) {
  const std::string path = dir + "/config.json", where = path + ": ";
  const Json json = parse_json(read_file(path, kMaxConfigBytes), path);
  const Fields fields(json, where);
  const std::string type = fields.text("model_type", "");
  MMFREE_CHECK(DataError, type == "hgrn_bit" || type == own_architecture().model_type, where, "model_type is ",
               quote(type), ", expected 'hgrn_bit' (a MatMul-free model) or 'mmfree'");
  refuse_unsupported(fields, where);
  ModelConfig c;
  c.vocab_size = fields.integer("vocab_size", 32000);
  c.hidden_size = fields.integer("hidden_size", 2048);
  c.num_hidden_layers = fields.integer("num_hidden_layers", 24);
  c.intermediate_size = fields.integer("intermediate_size", 0);
  c.hidden_ratio = fields.integer("hidden_ratio", 4);
  c.rms_norm_eps = fields.number("rms_norm_eps", 1e-6);
  c.initializer_range = fields.number("initializer_range", 0.02);
  c.use_lower_bound = fields.boolean("use_lower_bound", true);
  c.tie_word_embeddings = fields.boolean("tie_word_embeddings", false);
  c.max_position_embeddings = fields.integer("max_position_embeddings", 2048);
  c.bos_token_id = fields.token_id("bos_token_id", 1);
  c.eos_token_id = fields.token_id("eos_token_id", 2);
  if (fields.has("mmfree")) read_extras(Fields(fields["mmfree"], where + "mmfree: "), where + "mmfree: ", c);
  check_activation(fields, where, c);
  try {
    c.validate();
  } catch (const ConfigError& e) {
    throw DataError(where + e.what());
  }
  return c;
}

HfData read_hf_data(const std::string& dir) {
  const std::string path = dir + "/config.json", where = path + ": ";
  const Json json = parse_json(read_file(path, kMaxConfigBytes), path);
  HfData data;
  data.pad_token_id = int(Fields(json, where).token_id("pad_token_id", -1));
  if (!Fields(json, where).has("mmfree")) return data;
  const Fields extras(json["mmfree"], where + "mmfree: ");
  if (extras.has(kFraming))
    data.framing = extras.choice(kFraming, std::vector(std::begin(kAllFramings), std::end(kAllFramings)));
  data.reset_state = extras.boolean(kResetState, false);
  return data;
}

void write_hf_config(const std::string& dir, const ModelConfig& config, const std::string& torch_dtype,
                     const HfData& data) {
  MMFREE_CHECK(UsageError, torch_dtype == "float32" || torch_dtype == "bfloat16" || torch_dtype == "float16",
               "torch_dtype ", quote(torch_dtype), ", expected float32, bfloat16 or float16");
  const Architecture& architecture = architecture_of(config);
  const nlohmann::ordered_json json = {
      {"architectures", nlohmann::ordered_json::array({architecture.class_name})},
      {"model_type", architecture.model_type},
      {"vocab_size", config.vocab_size},
      {"hidden_size", config.hidden_size},
      {"num_hidden_layers", config.num_hidden_layers},
      {"intermediate_size",
       config.intermediate_size ? nlohmann::ordered_json(config.intermediate_size) : nlohmann::ordered_json()},
      {"hidden_ratio", config.hidden_ratio},
      {"hidden_act", hidden_act(config.activation)},
      {"attn_mode", "fused_recurrent"},
      {"num_heads", 1},
      {"expand_ratio", 1},
      {"use_short_conv", false},
      {"conv_size", 4},
      {"share_conv_kernel", true},
      {"use_lower_bound", config.use_lower_bound},
      {"rms_norm_eps", config.rms_norm_eps},
      {"initializer_range", config.initializer_range},
      {"max_position_embeddings", config.max_position_embeddings},
      {"fuse_cross_entropy", true},
      {"use_cache", true},
      {"tie_word_embeddings", config.tie_word_embeddings},
      {"pad_token_id", id_or_null(data.pad_token_id)},
      {"bos_token_id", id_or_null(config.bos_token_id)},
      {"eos_token_id", id_or_null(config.eos_token_id)},
      {"torch_dtype", torch_dtype},
      {"transformers_version", "4.40.2"},
      {"mmfree", extras_of(config, data)}};
  write_file(dir + "/config.json", json.dump(2) + "\n");
}

}  // namespace mmfree
