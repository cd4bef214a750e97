#include "train/formats/llama_config.h"

#include <algorithm>
#include <array>

#include "layers/bitlinear.h"

namespace mmfree {
namespace {

using Json = nlohmann::json;

/// Most modules that a quantization_config may except by name.
constexpr size_t kMostKept = 1024;
constexpr int64_t kMostLayers = 1 << 12;  // as in ModelConfig::validate
constexpr const char* kHead = "lm_head";

/// The linear layers of a block: our name, and their module in the block.
constexpr std::array<std::pair<const char*, const char*>, 7> kModules = {{{"q_proj", "self_attn.q_proj"},
                                                                          {"k_proj", "self_attn.k_proj"},
                                                                          {"v_proj", "self_attn.v_proj"},
                                                                          {"o_proj", "self_attn.o_proj"},
                                                                          {"gate_proj", "mlp.gate_proj"},
                                                                          {"up_proj", "mlp.up_proj"},
                                                                          {"down_proj", "mlp.down_proj"}}};

std::string module_name(int layer, const char* module) { return concat("model.layers.", layer, '.', module); }

/// Their names of our activations, the one to write first. selu has none.
constexpr std::array<std::pair<const char*, Activation>, 9> kActivations = {
    {{"silu", Activation::silu},
     {"swish", Activation::silu},
     {"gelu", Activation::gelu},
     {"gelu_pytorch_tanh", Activation::gelu_tanh},
     {"gelu_new", Activation::gelu_tanh},
     {"relu", Activation::relu},
     {"relu2", Activation::relu2},
     {"sigmoid", Activation::sigmoid},
     {"linear", Activation::identity}}};

const char* hidden_act(Activation f) {
  for (const auto& [name, activation] : kActivations)
    if (activation == f) return name;
  return nullptr;
}

/// Our projection with the rows of their module: with a fused gate the up projection is part of gate_proj.
std::string ours_of(const LayerConfig& layer, const char* projection) {
  return layer.fused_gate && std::string_view(projection) == "up_proj" ? "gate_proj" : projection;
}

bool is_ternary(const LayerConfig& layer, const char* projection) {
  return layer.precision_of(ours_of(layer, projection)) == Precision::ternary;
}

bool has_norm(const LayerConfig& layer, const char* projection) {
  return layer.inner_norm_of(ours_of(layer, projection));
}

/// Calls f(layer, our name, their module) for each linear layer, the head at the end.
template <class F>
void for_each_module(const ModelConfig& c, const F& f) {
  for (int l = 0; l < int(c.num_hidden_layers); ++l) {
    const LayerConfig layer = c.layer(l);
    for (const auto& [name, module] : kModules) f(layer, name, module_name(l, module));
  }
  f(c.layer(-1), kHead, std::string(kHead));
}

std::string shown(int64_t value) { return std::to_string(value); }
std::string shown(double value) { return Json(value).dump(); }
std::string shown(bool value) { return value ? "true" : "false"; }
template <class Enum>
std::string shown(Enum value) {
  return name_of(value);
}

/// The first key in which two layers compute different things, as "key is x and y"; "" if there is none.
std::string layer_difference(const LayerConfig& a, const LayerConfig& b) {
  std::string found;
  const auto same = [&](const char* key, const auto& x, const auto& y) {
    if (found.empty() && x != y) found = concat(key, " is ", shown(x), " and ", shown(y));
  };
  same("token", a.token, b.token);
  same("channel", a.channel, b.channel);
  same("num_attention_heads", a.heads, b.heads);
  same("num_key_value_heads", a.groups, b.groups);
  same("head_dim", a.head_dim, b.head_dim);
  same("rope_theta", a.rope_theta, b.rope_theta);
  same("sliding_window", a.sliding_window, b.sliding_window);
  same("intermediate_size", a.inner, b.inner);
  same("hidden_act", a.activation, b.activation);
  same("sub_norm", a.sub_norm, b.sub_norm);
  return found;
}

/// The class that computes layers like this one; "" if there is none. LlamaConfig refuses widths that its number of
/// heads does not divide, and large initial weights; MistralConfig, the same model, does not.
std::string class_of(const ModelConfig& c, const LayerConfig& layer) {
  if (layer.token != TokenKind::attention || layer.channel != ChannelKind::glu || !hidden_act(layer.activation))
    return "";
  if (layer.sub_norm) return layer.sliding_window == 0 && layer.heads * layer.head_dim == c.hidden_size ? "bitnet" : "";
  const bool llama = layer.sliding_window == 0 && c.hidden_size % layer.heads == 0 && c.initializer_range <= 1;
  return llama ? "llama" : "mistral";
}

/// A value for a message.
std::string shown(const Json& value) {
  if (value.is_string()) return quote(value.get<std::string>());
  return value.is_primitive() ? value.dump() : quote(value.dump());
}

[[noreturn]] void refuse(const JsonFields& json, const char* key, const std::string& why) {
  throw DataError(concat(json.where(), key, " is ", shown(json[key]), ": ", why));
}

void refuse_unsupported(const JsonFields& json, const std::string& model_type) {
  for (const char* key : {"attention_bias", "mlp_bias"})
    if (json.boolean(key, false)) refuse(json, key, "biases are not implemented");
  for (const char* key : {"num_experts", "num_local_experts", "n_routed_experts"})
    if (json.has(key)) refuse(json, key, "mixtures of experts are not implemented");
  for (const char* key : {"attn_logit_softcapping", "final_logit_softcapping"})
    if (json.has(key)) refuse(json, key, "capped logits are not implemented");
  if (json.number("partial_rotary_factor", 1) != 1)
    refuse(json, "partial_rotary_factor", "rotary positions of a part of each head are not implemented");
  if (model_type != "mistral" && json.has("sliding_window"))
    refuse(json, "sliding_window", concat("the class of model_type '", model_type, "' has no window; remove the key"));
}

/// The base of rotary angles. 4.x has rope_theta beside rope_scaling, 5.x rope_parameters with the base in it.
double rope_theta(const JsonFields& json, double otherwise) {
  std::optional<double> theta;
  if (json.has("rope_theta")) theta = json.number("rope_theta", 0);
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    if (!json.has(key)) continue;
    const JsonFields rope(json[key], concat(json.where(), key, ": "));
    for (const char* kind : {"type", "rope_type"})
      if (rope.text(kind, "default") != "default") refuse(rope, kind, "only unscaled RoPE ('default') is implemented");
    if (rope.number("partial_rotary_factor", 1) != 1)
      refuse(rope, "partial_rotary_factor", "rotary positions of a part of each head are not implemented");
    for (const auto& [name, value] : json[key].items())
      MMFREE_CHECK(DataError, !value.is_object(), rope.where(), quote(name),
                   " is an object: RoPE that differs between layers is not implemented");
    const double inside = rope.number("rope_theta", theta.value_or(otherwise));
    if (theta && inside != *theta)
      refuse(rope, "rope_theta", concat("but another rope_theta, ", shown(*theta), ", is given; remove one of them"));
    theta = inside;
  }
  return theta.value_or(otherwise);
}

Activation activation(const JsonFields& json, const char* otherwise) {
  const std::string name = json.text("hidden_act", otherwise);
  std::string known;
  for (const auto& [theirs, activation] : kActivations) {
    if (name == theirs) return activation;
    known += concat(' ', theirs);
  }
  throw DataError(concat(json.where(), "hidden_act is ", quote(name), ", expected one of", known));
}

/// The precision of products that are not ternary.
Precision plain_precision(const JsonFields& json) {
  const char* key = json.has("dtype") ? "dtype" : "torch_dtype";
  const std::string dtype = json.text(key, "float32");
  MMFREE_CHECK(DataError, dtype == "float32" || dtype == "bfloat16" || dtype == "float16", json.where(), key, " is ",
               quote(dtype), ", expected float32, bfloat16 or float16");
  return dtype == "float32" ? Precision::f32 : Precision::bf16;
}

/// Mistral's window. transformers' query sees the last `sliding_window` tokens, its own among them, as ours.
int64_t sliding_window(const JsonFields& json) {
  constexpr int64_t kDefault = 4096;
  const int64_t window = json.given("sliding_window") ? json.integer("sliding_window", 0) : kDefault;
  if (json.has("sliding_window") && window < 1) refuse(json, "sliding_window", "expected at least 1, or null");
  return window;
}

void check_layer_types(const JsonFields& json, const ModelConfig& c) {
  const std::string all = c.sliding_window ? "sliding_attention" : "full_attention";
  for (const Json& type : json.list("layer_types"))
    MMFREE_CHECK(DataError, type == all, json.where(), "layer_types has ", shown(type), ", but with this ",
                 "sliding_window all layers must be ", quote(all));
}

/// Whether `pattern` excepts the module, as transformers matches them: a module with all in it, with or without a dot
/// at its end, or the end of a name.
bool excepts(const std::string& pattern, const std::string& module) {
  if (module.ends_with(pattern)) return true;
  return module.starts_with(pattern) && (pattern.ends_with('.') || module[pattern.size()] == '.');
}

std::vector<std::string> kept_patterns(const JsonFields& quantisation) {
  const char* key = "modules_to_not_convert";
  if (!quantisation.has(key)) return {kHead};
  std::vector<std::string> patterns;
  for (const Json& item : quantisation.list(key)) {
    patterns.push_back(quantisation.as_text(item, key));
    const auto plain = [](unsigned char c) { return std::isalnum(c) || c == '_' || c == '.'; };
    MMFREE_CHECK(DataError,
                 !patterns.back().empty() && std::all_of(patterns.back().begin(), patterns.back().end(), plain),
                 quantisation.where(), key, ": ", quote(patterns.back()), " is a pattern; name modules");
  }
  MMFREE_CHECK(DataError, patterns.size() <= kMostKept, quantisation.where(), key, " has ", patterns.size(),
               " entries, expected at most ", kMostKept);
  return patterns;
}

/// Rules for the modules that are not quantised: one for each set of projections.
std::vector<PrecisionRule> kept_rules(const ModelConfig& c, const std::vector<std::string>& patterns,
                                      const PrecisionRule& change) {
  std::vector<PrecisionRule> rules;
  const auto kept = [&](const std::string& module) {
    return std::any_of(patterns.begin(), patterns.end(), [&](const auto& p) { return excepts(p, module); });
  };
  for (int l = 0; l < int(c.num_hidden_layers); ++l) {
    std::vector<std::string> names;
    for (const auto& [name, module] : kModules)
      if (kept(module_name(l, module))) names.push_back(name);
    if (names.empty()) continue;
    auto rule = std::find_if(rules.begin(), rules.end(), [&](const auto& r) { return r.projections == names; });
    if (rule == rules.end()) rule = rules.insert(rule, {{}, names, change.precision, change.inner_norm});
    rule->layers.push_back(l);
  }
  if (kept(kHead)) rules.push_back({{}, {kHead}, change.precision, change.inner_norm});
  return rules;
}

/// Makes the model one of BitLinears.
void read_quantisation(const JsonFields& json, ModelConfig& c) {
  const JsonFields q(json["quantization_config"], json.where() + "quantization_config: ");
  const std::string method = q.text("quant_method", "");
  MMFREE_CHECK(DataError, method == "bitnet", q.where(), "quant_method is ", quote(method),
               ", expected 'bitnet'; use the model's folder with weights that are not quantised");
  const std::string linear = q.text("linear_class", "bitlinear"), mode = q.text("quantization_mode", "offline");
  MMFREE_CHECK(DataError, linear == "autobitlinear" && mode == "online", q.where(), "linear_class is ", quote(linear),
               " and quantization_mode ", quote(mode),
               ": packed or rounded weights lack the latent weights that mmfree needs; use the model's folder with its "
               "bf16 master weights (autobitlinear, online)");
  c.inner_norm = q.boolean("use_rms_norm", false);
  if (c.inner_norm && q.number("rms_norm_eps", BitLinear::kEps) != BitLinear::kEps)
    refuse(q, "rms_norm_eps", concat("the norm of a projection has ", shown(BitLinear::kEps)));
  PrecisionRule change{{}, {}, c.precision, {}};
  if (c.inner_norm) change.inner_norm = false;
  c.precision = Precision::ternary;
  c.precision_rules = kept_rules(c, kept_patterns(q), change);
}

}  // namespace

bool is_llama_type(const std::string& type) { return type == "llama" || type == "mistral" || type == "bitnet"; }

std::optional<LlamaForm> llama_form(const ModelConfig& c) {
  const LayerConfig first = c.layer(0);
  LlamaForm form{class_of(c, first), first.fused_gate, false, false, {}};
  bool expressible = !form.model_type.empty();
  for (int l = 1; l < int(c.num_hidden_layers) && expressible; ++l) {
    const LayerConfig layer = c.layer(l);
    expressible = layer_difference(first, layer).empty() && layer.fused_gate == first.fused_gate;
  }
  if (!expressible) return {};
  for_each_module(c, [&](const LayerConfig& layer, const char* name, const std::string& module) {
    if (!is_ternary(layer, name)) {
      form.kept.push_back(module);
      expressible &= !has_norm(layer, name);
      return;
    }
    expressible &= !form.quantised || form.rms_norm == has_norm(layer, name);
    form.quantised = true;
    form.rms_norm = has_norm(layer, name);
    if (layer.fused_gate && ours_of(layer, name) == "gate_proj") expressible = false;  // theirs has two scales
  });
  if (!form.quantised) form.kept.clear();
  if (!expressible || form.kept.size() > kMostKept) return {};
  return form;
}

ModelConfig read_llama_config(const JsonFields& json, const std::string& type) {
  refuse_unsupported(json, type);
  const bool mistral = type == "mistral", bitnet = type == "bitnet";
  ModelConfig c;
  c.token = TokenKind::attention;
  c.vocab_size = json.integer("vocab_size", bitnet ? 128256 : 32000);
  c.hidden_size = json.integer("hidden_size", bitnet ? 2560 : 4096);
  c.intermediate_size = json.integer("intermediate_size", bitnet ? 6912 : mistral ? 14336 : 11008);
  c.num_hidden_layers = json.integer("num_hidden_layers", bitnet ? 30 : 32);
  c.heads = json.integer("num_attention_heads", bitnet ? 20 : 32);
  const int64_t groups = bitnet ? 5 : mistral ? 8 : c.heads;
  c.kv_heads = json.given("num_key_value_heads") ? json.integer("num_key_value_heads", c.heads) : groups;
  c.head_dim = json.integer("head_dim", 0);
  c.rope_theta = rope_theta(json, bitnet ? 500000 : 10000);
  c.activation = activation(json, bitnet ? "relu2" : "silu");
  c.rms_norm_eps = json.number("rms_norm_eps", bitnet ? 1e-5 : 1e-6);
  c.initializer_range = json.number("initializer_range", 0.02);
  c.tie_word_embeddings = json.boolean("tie_word_embeddings", false);
  c.max_position_embeddings = json.integer("max_position_embeddings", mistral ? 131072 : 2048);
  c.bos_token_id = json.token_id("bos_token_id", bitnet ? 128000 : 1);
  c.eos_token_id = json.token_id("eos_token_id", bitnet ? 128001 : 2);
  c.fused_gate = false;
  c.inner_norm = false;
  c.sub_norm = bitnet;
  c.precision = plain_precision(json);
  MMFREE_CHECK(DataError, c.intermediate_size > 0, json.where(), "intermediate_size is ", c.intermediate_size,
               ", expected at least 1");
  MMFREE_CHECK(DataError, c.num_hidden_layers > 0 && c.num_hidden_layers <= kMostLayers, json.where(),
               "num_hidden_layers is ", c.num_hidden_layers, ", expected 1..", kMostLayers);
  if (mistral) c.sliding_window = sliding_window(json);
  check_layer_types(json, c);
  if (json.has("quantization_config")) read_quantisation(json, c);
  MMFREE_CHECK(DataError, !bitnet || c.head_dim == 0 || c.head_dim * c.heads == c.hidden_size, json.where(),
               "head_dim is ", c.head_dim, ": the norm behind attention is as wide as the model, so ", c.heads,
               " heads must be hidden_size (", c.hidden_size, ") wide");
  return c;
}

nlohmann::ordered_json llama_keys(const ModelConfig& c, const LlamaForm& form) {
  const LayerConfig layer = c.layer(0);
  nlohmann::ordered_json json = {{"vocab_size", c.vocab_size},
                                 {"hidden_size", c.hidden_size},
                                 {"intermediate_size", layer.inner},
                                 {"num_hidden_layers", c.num_hidden_layers},
                                 {"num_attention_heads", layer.heads},
                                 {"num_key_value_heads", layer.groups},
                                 {"head_dim", layer.head_dim},
                                 {"hidden_act", hidden_act(layer.activation)},
                                 {"rms_norm_eps", c.rms_norm_eps},
                                 {"rope_theta", layer.rope_theta},
                                 {"rope_scaling", nullptr},
                                 {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", layer.rope_theta}}},
                                 {"attention_bias", false},
                                 {"attention_dropout", 0.0},
                                 {"initializer_range", c.initializer_range},
                                 {"max_position_embeddings", c.max_position_embeddings},
                                 {"use_cache", true},
                                 {"tie_word_embeddings", c.tie_word_embeddings}};
  if (form.model_type == "llama") json["mlp_bias"] = false;
  if (form.model_type == "mistral") json["sliding_window"] = layer.sliding_window ? Json(layer.sliding_window) : Json();
  if (form.quantised)
    json["quantization_config"] = {{"quant_method", "bitnet"},      {"linear_class", "autobitlinear"},
                                   {"quantization_mode", "online"}, {"modules_to_not_convert", form.kept},
                                   {"use_rms_norm", form.rms_norm}, {"rms_norm_eps", BitLinear::kEps}};
  return json;
}

std::string llama_difference(const ModelConfig& a, const ModelConfig& b) {
  std::string found;
  for (int l = 0; l < int(a.num_hidden_layers) && found.empty(); ++l) found = layer_difference(a.layer(l), b.layer(l));
  std::vector<std::pair<bool, bool>> in_b;
  for_each_module(b, [&](const LayerConfig& layer, const char* name, const std::string&) {
    in_b.emplace_back(is_ternary(layer, name), has_norm(layer, name));
  });
  size_t i = 0;
  for_each_module(a, [&](const LayerConfig& layer, const char* name, const std::string& module) {
    const auto [ternary, norm] = in_b[i++];
    if (!found.empty()) return;
    const auto kind = [](bool yes) { return yes ? "ternary" : "not ternary"; };
    if (is_ternary(layer, name) != ternary)
      found = concat(module, " is ", kind(!ternary), " and ", kind(ternary));
    else if (has_norm(layer, name) != norm)
      found = concat("use_rms_norm of ", module, " is ", shown(!norm), " and ", shown(norm));
  });
  return found;
}

}  // namespace mmfree
