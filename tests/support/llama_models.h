#pragma once
#include <string>
#include <vector>

#include "layers/model_config.h"

/// Small models of every kind that transformers' Llama, Mistral and BitNet compute.
namespace mmfree {

struct LlamaCase {
  std::string name, model_type;
  ModelConfig config;
};

inline void PrintTo(const LlamaCase& c, std::ostream* out) { *out << c.name; }

/// Six heads of width 8 over two of keys and values, untied, products in f32.
inline ModelConfig tiny_llama() {
  ModelConfig c;
  c.vocab_size = 61;
  c.hidden_size = 48;
  c.num_hidden_layers = 3;
  c.intermediate_size = 53;
  c.initializer_range = 0.3;
  c.rms_norm_eps = 1e-5;
  c.token = TokenKind::attention;
  c.heads = 6;
  c.kv_heads = 2;
  c.fused_gate = false;
  c.inner_norm = false;
  c.precision = Precision::f32;
  return c;
}

/// Makes all but the head ternary.
inline void make_bitnet(ModelConfig& c, bool inner_norm, Precision head = Precision::f32) {
  c.precision = Precision::ternary;
  c.inner_norm = inner_norm;
  PrecisionRule rule{{}, {"lm_head"}, head, {}};
  if (inner_norm) rule.inner_norm = false;
  c.precision_rules = {rule};
}

inline std::vector<LlamaCase> llama_cases() {
  std::vector<LlamaCase> all;
  const auto add = [&](const char* name, const char* type, const auto& change) {
    all.push_back({name, type, tiny_llama()});
    change(all.back().config);
  };
  add("llama", "llama", [](ModelConfig&) {});
  add("tied_bf16", "llama", [](ModelConfig& c) { c.tie_word_embeddings = true, c.precision = Precision::bf16; });
  add("wide_heads", "llama", [](ModelConfig& c) { c.head_dim = 16, c.kv_heads = 0, c.rope_theta = 500000; });
  add("gelu", "llama", [](ModelConfig& c) { c.activation = Activation::gelu_tanh, c.intermediate_size = 0; });
  add("fused", "llama", [](ModelConfig& c) { c.fused_gate = true; });
  add("some_bf16", "llama", [](ModelConfig& c) { c.precision_rules = {{{1}, {}, Precision::bf16, {}}}; });
  add("window", "mistral", [](ModelConfig& c) { c.sliding_window = 5; });
  add("odd_width", "mistral", [](ModelConfig& c) { c.heads = 5, c.kv_heads = 1, c.head_dim = 8; });
  add("bitnet_plain", "bitnet", [](ModelConfig& c) { c.sub_norm = true, c.activation = Activation::relu2; });
  add("bitnet", "bitnet", [](ModelConfig& c) {
    make_bitnet(c, false, Precision::bf16);
    c.sub_norm = c.tie_word_embeddings = true;
    c.activation = Activation::relu2;
  });
  add("bitnet_inner", "bitnet", [](ModelConfig& c) { make_bitnet(c, true), c.sub_norm = true; });
  add("ternary", "llama", [](ModelConfig& c) { make_bitnet(c, false); });
  add("ternary_inner", "llama", [](ModelConfig& c) { make_bitnet(c, true); });
  add("ternary_window", "mistral", [](ModelConfig& c) { make_bitnet(c, true), c.sliding_window = 4; });
  add("ternary_head", "llama", [](ModelConfig& c) {
    c.precision = Precision::ternary;
    c.inner_norm = c.tie_word_embeddings = true;
  });
  add("ternary_some", "llama", [](ModelConfig& c) {
    make_bitnet(c, true);
    c.precision_rules.push_back({{0, 2}, {"o_proj", "up_proj"}, Precision::f32, false});
  });
  return all;
}

}  // namespace mmfree
