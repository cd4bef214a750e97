#include "layers/model_config.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace mmfree {

const char* name_of(Precision p) { return p == Precision::ternary ? "ternary" : p == Precision::bf16 ? "bf16" : "f32"; }

const char* name_of(GateOrder g) {
  return g == GateOrder::reference ? "reference" : g == GateOrder::fixed ? "fixed" : "paper";
}

int64_t ModelConfig::intermediate() const {
  if (intermediate_size > 0) return intermediate_size;
  const int64_t raw = hidden_size * hidden_ratio * 2 / 3;
  return (raw + 255) / 256 * 256;
}

Precision ModelConfig::precision_of(int layer, const std::string& projection) const {
  Precision p = precision;
  for (const PrecisionRule& rule : precision_rules) {
    const bool layer_matches =
        rule.layers.empty() || std::find(rule.layers.begin(), rule.layers.end(), layer) != rule.layers.end();
    const bool name_matches = rule.projections.empty() || std::find(rule.projections.begin(), rule.projections.end(),
                                                                    projection) != rule.projections.end();
    if (layer_matches && name_matches) p = rule.precision;
  }
  return p;
}

int64_t ModelConfig::matrix_parameter_count() const {
  const int64_t d = hidden_size;
  return num_hidden_layers * (4 * d * d + 3 * d * intermediate()) + vocab_size * d;
}

int64_t ModelConfig::parameter_count() const {
  const int64_t d = hidden_size, gate_norm = gate_order == GateOrder::paper ? 0 : d;
  const int64_t vectors_per_layer = 7 * d + gate_norm + intermediate();
  const int64_t lower_bounds = use_lower_bound ? num_hidden_layers * d : 0;
  return matrix_parameter_count() + vocab_size * d + num_hidden_layers * vectors_per_layer + lower_bounds + 2 * d;
}

void ModelConfig::validate() const {
  const auto positive = [](const char* key, int64_t value, int64_t most) {
    MMFREE_CHECK(ConfigError, value >= 1 && value <= most, "model.", key, ": ", value, " is outside 1..", most);
  };
  positive("vocab_size", vocab_size, 1 << 24);
  positive("hidden_size", hidden_size, 1 << 17);
  positive("num_hidden_layers", num_hidden_layers, 1 << 12);
  positive("hidden_ratio", hidden_ratio, 1 << 10);
  MMFREE_CHECK(ConfigError, intermediate_size >= 0 && intermediate_size <= (1 << 20),
               "model.intermediate_size: ", intermediate_size, " is outside 0..", 1 << 20);
  MMFREE_CHECK(ConfigError, std::isfinite(rms_norm_eps) && rms_norm_eps > 0 && rms_norm_eps < 1,
               "model.rms_norm_eps: ", rms_norm_eps, " is outside (0, 1)");
  MMFREE_CHECK(ConfigError, initializer_range > 0 && initializer_range <= 1000,
               "model.initializer_range: ", initializer_range, " is outside (0, 1000]");
  positive("max_position_embeddings", max_position_embeddings, int64_t(1) << 40);
  for (auto [key, id] : {std::pair{"bos_token_id", bos_token_id}, {"eos_token_id", eos_token_id}})
    MMFREE_CHECK(ConfigError, id >= -1 && id < vocab_size, "model.", key, ": ", id, " is outside -1..", vocab_size - 1);
  static const std::vector<std::string> known = {"i_proj",    "f_proj",    "g_proj", "o_proj",
                                                 "gate_proj", "down_proj", "lm_head"};
  for (const PrecisionRule& rule : precision_rules) {
    for (const std::string& name : rule.projections)
      MMFREE_CHECK(ConfigError, std::find(known.begin(), known.end(), name) != known.end(),
                   "model.precision_rules: unknown projection ", quote(name),
                   " (known: i_proj f_proj g_proj o_proj gate_proj down_proj lm_head)");
    for (int layer : rule.layers)
      MMFREE_CHECK(ConfigError, layer >= 0 && layer < num_hidden_layers, "model.precision_rules: layer ", layer,
                   " is outside 0..", num_hidden_layers - 1);
  }
}

}  // namespace mmfree
