#pragma once
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "layers/model_config.h"
#include "train/formats/architecture.h"
#include "train/formats/json_fields.h"

/// The keys of config.json of Hugging Face's classes Llama, Mistral and BitNet, as transformers 4.x and 5.x write them.
/// With a quantization_config {bitnet, autobitlinear, online} each linear layer of theirs is a BitLinear, but for the
/// modules that are excepted.
namespace mmfree {

/// Whether `model_type` is "llama", "mistral" or "bitnet".
bool is_llama_type(const std::string& model_type);

/// How one of these classes computes a model of ours.
struct LlamaForm {
  std::string model_type;
  bool fused_gate;                ///< ours holds gate and up projection in one matrix
  bool quantised;                 ///< config.json has a quantization_config
  bool rms_norm;                  ///< its use_rms_norm
  std::vector<std::string> kept;  ///< modules that it does not quantise
};

/// The form of a model if the classes compute exactly it; nullopt if not. Not counted: whether products that are not
/// ternary round to bf16, because transformers leaves that to whoever loads the model.
std::optional<LlamaForm> llama_form(const ModelConfig& config);

/// Reads the keys of `json`, the object of config.json. Products that are not ternary get the precision f32 if the
/// stored dtype is float32 or not given, else bf16.
/// @throws DataError naming file, key and value for anything malformed, or not implemented: biases, RoPE scaling,
/// partial RoPE, packed or otherwise quantised weights, experts, capped logits, other activations.
ModelConfig read_llama_config(const JsonFields& json, const std::string& model_type);

/// The keys that transformers reads, 4.x and 5.x, but for token ids and dtype. @param config of the given form
nlohmann::ordered_json llama_keys(const ModelConfig& config, const LlamaForm& form);

/// Names what the classes compute otherwise for `a` than for `b`: "rope_theta is 10000 and 500000", or "". Both are
/// valid and have a form.
std::string llama_difference(const ModelConfig& a, const ModelConfig& b);

}  // namespace mmfree
