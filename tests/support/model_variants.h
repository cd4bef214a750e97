#pragma once
#include <functional>
#include <string>
#include <vector>

#include "layers/block.h"
#include "tests/support/tiny_model.h"

/// Models that differ in one setting each, or in a few that meet: what every property of layers is tested over. Each
/// kind of mixer is among them without being named here.
namespace mmfree {

struct Variant {
  std::string name;
  ModelConfig config;
  DType dtype;
};

inline void PrintTo(const Variant& v, std::ostream* out) { *out << v.name; }

/// One entry of model.layers.
inline LayerEntry layer_entry(int64_t repeat, const std::function<void(LayerEntry&)>& change) {
  LayerEntry entry;
  entry.repeat = repeat;
  change(entry);
  return entry;
}

/// Three layers that differ in every key that a layer has.
inline void list_layers(ModelConfig& c) {
  c.layers = {layer_entry(1, [](LayerEntry& e) { e.activation = Activation::relu2, e.inner_norm = false; }),
              layer_entry(1, [](LayerEntry& e) { e.channel = ChannelKind::mlp, e.precision = Precision::bf16; }),
              layer_entry(1, [](LayerEntry& e) { e.gate_order = GateOrder::fixed, e.intermediate_size = 41; })};
}

/// Attention with two heads of queries that share keys and values. The width of a head fits no vector.
inline void attend(ModelConfig& c) {
  c.token = TokenKind::attention;
  c.heads = 4, c.kv_heads = 2, c.head_dim = 8;
}

using Setting = std::pair<std::string, std::function<void(ModelConfig&)>>;

inline std::vector<Setting> model_settings() {
  std::vector<Setting> all = {
      {"reference", [](ModelConfig&) {}},
      {"fixed", [](ModelConfig& c) { c.gate_order = GateOrder::fixed; }},
      {"paper", [](ModelConfig& c) { c.gate_order = GateOrder::paper; }},
      {"unbounded", [](ModelConfig& c) { c.use_lower_bound = false; }},
      {"mixed", [](ModelConfig& c) { mix_precisions(c); }},
      {"mixed_paper", [](ModelConfig& c) { mix_precisions(c), c.gate_order = GateOrder::paper; }},
      {"bf16", [](ModelConfig& c) { c.precision = Precision::bf16; }},
      {"f32", [](ModelConfig& c) { c.precision = Precision::f32, c.use_lower_bound = false; }},
      {"plain", [](ModelConfig& c) { c.inner_norm = false; }},
      {"plain_mixed", [](ModelConfig& c) { mix_precisions(c), c.inner_norm = false; }},
      {"tied", [](ModelConfig& c) { c.tie_word_embeddings = true; }},
      {"tied_bf16", [](ModelConfig& c) { c.tie_word_embeddings = true, c.precision = Precision::bf16; }},
      {"layers", list_layers},
      {"window", [](ModelConfig& c) { attend(c), c.sliding_window = 3; }},
      {"hybrid",
       [](ModelConfig& c) {
         c.layers = {layer_entry(2, [](LayerEntry&) {}), layer_entry(1, [](LayerEntry& e) {
                       e.token = TokenKind::attention, e.heads = 3, e.kv_heads = 1, e.head_dim = 24;
                       e.precision = Precision::bf16, e.inner_norm = false;
                     })};
       }},
      {"transformer",
       [](ModelConfig& c) {
         attend(c), c.rope_theta = 100, c.fused_gate = false, c.precision = Precision::f32, c.inner_norm = false;
       }},
      {"bitnet",
       [](ModelConfig& c) {
         attend(c), c.fused_gate = false, c.inner_norm = false, c.sub_norm = true, c.activation = Activation::relu2;
         c.precision_rules = {{{}, {"lm_head"}, Precision::f32}};
       }},
      {"bit_llama",
       [](ModelConfig& c) {
         attend(c), c.fused_gate = false, c.precision_rules = {{{}, {"lm_head"}, Precision::bf16, false}};
       }},
      {"mlp_sub_norm", [](ModelConfig& c) { c.channel = ChannelKind::mlp, c.sub_norm = true; }},
  };
  for (TokenKind token : kAllTokenKinds)
    for (ChannelKind channel : kAllChannelKinds)
      for (Activation activation : kAllActivations)
        all.emplace_back(std::string(name_of(token)) + "_" + name_of(channel) + "_" + name_of(activation),
                         [=](ModelConfig& c) {
                           if (token == TokenKind::attention) attend(c);
                           c.token = token, c.channel = channel, c.activation = activation;
                         });
  return all;
}

inline std::vector<Variant> model_variants(std::initializer_list<DType> dtypes) {
  std::vector<Variant> all;
  for (const auto& [name, change] : model_settings())
    for (DType t : dtypes) {
      Variant v{name + "_in_" + name_of(t), tiny_model_config(), t};
      change(v.config);
      all.push_back(v);
    }
  return all;
}

}  // namespace mmfree
