#include "layers/model_config.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "layers/block.h"
#include "layers/parameters.h"

namespace mmfree {
namespace {

/// Most heads, and their widest.
constexpr int64_t kMostHeads = 1 << 12, kMostHeadWidth = 512;

bool has_heads(const LayerConfig& layer) {
  return std::visit([](const auto& mixer) { return mixer.has_heads; }, make_mixer<TokenMixer>(layer.token, layer));
}

void check_range(const std::string& key, int64_t value, int64_t least, int64_t most) {
  MMFREE_CHECK(ConfigError, value >= least && value <= most, key, ": ", value, " is outside ", least, "..", most);
}

/// Checks the ranges of a layer's keys.
void check_layer(const std::string& where, const LayerConfig& layer) {
  constexpr int64_t kMostInner = 1 << 20;
  check_range(where + "intermediate_size", layer.intermediate_size, 0, kMostInner);
  check_range(where + "heads", layer.heads, 1, kMostHeads);
  check_range(where + "kv_heads", layer.kv_heads, 0, layer.heads);
  check_range(where + "head_dim", layer.head_dim, 0, 1 << 17);  // of heads: see check_shape_of_heads
  check_range(where + "sliding_window", layer.sliding_window, 0, std::numeric_limits<int32_t>::max());
  MMFREE_CHECK(ConfigError, std::isfinite(layer.rope_theta) && layer.rope_theta >= 1 && layer.rope_theta <= 1e12, where,
               "rope_theta: ", layer.rope_theta, " is outside [1, 1e12]");
}

/// Checks that the heads of a layer fit together.
void check_shape_of_heads(const std::string& where, const LayerConfig& layer) {
  check_range(where + "heads", layer.heads, 1, kMostHeads);
  check_range(where + "kv_heads", layer.kv_heads, 0, layer.heads);
  MMFREE_CHECK(ConfigError, layer.heads % layer.groups == 0, where, "kv_heads: ", layer.groups, " do not divide ",
               layer.heads, " heads");
  MMFREE_CHECK(ConfigError, layer.head_dim > 0 && layer.head_dim % 8 == 0 && layer.head_dim <= kMostHeadWidth, where,
               "heads: ", layer.heads, " heads of a width of ", layer.width,
               layer.head_dim * layer.heads == layer.width ? "" : concat(" and head_dim ", layer.head_dim),
               "; the width of a head must be a multiple of 8 up to ", kMostHeadWidth, ", given by heads or head_dim");
}

/// Refuses heads where no mixer has any: in an entry of model.layers, and in the model if none of its layers does.
void check_heads(const ModelConfig& c) {
  const auto check = [](const std::string& where, bool allowed, int64_t heads, int64_t kv_heads, int64_t head_dim,
                        int64_t window, double theta, TokenKind token) {
    MMFREE_CHECK(ConfigError, allowed || (heads == 1 && kv_heads <= 1), where, heads == 1 ? "kv_" : "",
                 "heads: ", heads == 1 ? kv_heads : heads, " heads, but ", name_of(token),
                 " mixes every channel on its own; leave heads and kv_heads out, or give 1 and 0");
    MMFREE_CHECK(ConfigError, allowed || (head_dim == 0 && window == 0), where,
                 head_dim ? "head_dim" : "sliding_window", ": ", head_dim ? head_dim : window, ", but ", name_of(token),
                 " has no heads and no window; leave it out, or give 0");
    MMFREE_CHECK(ConfigError, allowed || theta == kRopeTheta, where, "rope_theta: ", theta, ", but ", name_of(token),
                 " has no positions; leave it out, or give ", kRopeTheta);
  };
  bool any = c.uniform() && has_heads(c.layer(0));
  int64_t first = 0;
  for (size_t i = 0; i < c.layers.size(); first += c.layers[i++].repeat) {
    const LayerConfig layer = c.layer(int(first));
    const LayerEntry& given = c.layers[i];
    any |= has_heads(layer);
    check(concat("model.layers[", i, "]."), has_heads(layer), given.heads.value_or(1), given.kv_heads.value_or(0),
          given.head_dim.value_or(0), given.sliding_window.value_or(0), given.rope_theta.value_or(kRopeTheta),
          layer.token);
    if (has_heads(layer)) check_shape_of_heads(concat("model.layers[", i, "]."), layer);
  }
  check("model.", any, c.heads, c.kv_heads, c.head_dim, c.sliding_window, c.rope_theta, c.layer(0).token);
  if (c.uniform() && any) check_shape_of_heads("model.", c.layer(0));
}

void check_rules(const ModelConfig& c) {
  const std::vector<std::string> known = projection_names(c);
  for (const PrecisionRule& rule : c.precision_rules) {
    for (const std::string& name : rule.projections) {
      std::string list;
      for (const std::string& k : known) list += ' ' + k;
      MMFREE_CHECK(ConfigError, std::find(known.begin(), known.end(), name) != known.end(),
                   "model.precision_rules: unknown projection ", quote(name), " (this model has:", list, ")");
    }
    for (int layer : rule.layers)
      MMFREE_CHECK(ConfigError, layer >= 0 && layer < c.num_hidden_layers, "model.precision_rules: layer ", layer,
                   " is outside 0..", c.num_hidden_layers - 1);
    MMFREE_CHECK(ConfigError, rule.precision || rule.inner_norm,
                 "model.precision_rules: a rule names no precision and no inner_norm");
  }
}

}  // namespace

const char* name_of(TokenKind k) {
  switch (k) {
    case TokenKind::mlgru:
      return "mlgru";
    case TokenKind::attention:
      return "attention";
  }
  return "?";
}

const char* name_of(ChannelKind k) {
  switch (k) {
    case ChannelKind::glu:
      return "glu";
    case ChannelKind::mlp:
      return "mlp";
  }
  return "?";
}

const char* name_of(Precision p) {
  switch (p) {
    case Precision::ternary:
      return "ternary";
    case Precision::bf16:
      return "bf16";
    case Precision::f32:
      return "f32";
  }
  return "?";
}

const char* name_of(GateOrder g) {
  switch (g) {
    case GateOrder::reference:
      return "reference";
    case GateOrder::fixed:
      return "fixed";
    case GateOrder::paper:
      return "paper";
  }
  return "?";
}

int64_t ModelConfig::intermediate_of(int64_t size) const {
  if (size > 0) return size;
  const int64_t raw = hidden_size * hidden_ratio * 2 / 3;
  return (raw + 255) / 256 * 256;
}

int64_t ModelConfig::listed_layers() const {
  int64_t n = 0;
  for (const LayerEntry& entry : layers) n += entry.repeat;
  return n;
}

bool ModelConfig::uses(TokenKind kind) const {
  for (const LayerEntry& entry : layers)
    if (entry.token.value_or(token) == kind) return true;
  return uniform() && token == kind;
}

LayerConfig ModelConfig::layer(int l) const {
  LayerConfig c;
  zip_layer_keys(c, *this, [](auto& to, const auto& from) { to = from; });
  int64_t end = 0;
  for (const LayerEntry& entry : layers) {
    const bool here = l >= end && l < end + entry.repeat;
    end += entry.repeat;
    if (!here) continue;
    zip_layer_keys(c, entry, [](auto& to, const auto& given) { to = given.value_or(to); });
  }
  c.index = l;
  c.width = hidden_size;
  c.inner = intermediate_of(c.intermediate_size);
  c.groups = c.kv_heads ? c.kv_heads : c.heads;
  if (c.head_dim == 0 && c.heads > 0 && c.width % c.heads == 0) c.head_dim = c.width / c.heads;
  c.depth = num_hidden_layers;
  c.norm_eps = rms_norm_eps;
  c.std = initializer_range;
  c.model = this;
  return c;
}

namespace {

bool applies(const PrecisionRule& rule, int layer, const std::string& projection) {
  const auto lists = [](const auto& all, const auto& one) {
    return all.empty() || std::find(all.begin(), all.end(), one) != all.end();
  };
  return lists(rule.layers, layer) && lists(rule.projections, projection);
}

}  // namespace

Precision LayerConfig::precision_of(const std::string& name) const {
  Precision p = precision;
  for (const PrecisionRule& rule : model->precision_rules)
    if (applies(rule, index, name)) p = rule.precision.value_or(p);
  return p;
}

bool LayerConfig::inner_norm_of(const std::string& name) const {
  bool normalises = inner_norm;
  for (const PrecisionRule& rule : model->precision_rules)
    if (applies(rule, index, name)) normalises = rule.inner_norm.value_or(normalises);
  return normalises;
}

void ModelConfig::validate() const {
  check_range("model.vocab_size", vocab_size, 1, 1 << 24);
  check_range("model.hidden_size", hidden_size, 1, 1 << 17);
  for (size_t i = 0; i < layers.size(); ++i)
    check_range(concat("model.layers[", i, "].repeat"), layers[i].repeat, 1, 1 << 12);
  check_range("model.num_hidden_layers", num_hidden_layers, 1, 1 << 12);
  MMFREE_CHECK(ConfigError, uniform() || listed_layers() == num_hidden_layers,
               "model.num_hidden_layers: ", num_hidden_layers, ", but model.layers lists ", listed_layers(),
               "; leave num_hidden_layers out");
  check_range("model.hidden_ratio", hidden_ratio, 1, 1 << 10);
  MMFREE_CHECK(ConfigError, std::isfinite(rms_norm_eps) && rms_norm_eps > 0 && rms_norm_eps < 1,
               "model.rms_norm_eps: ", rms_norm_eps, " is outside (0, 1)");
  MMFREE_CHECK(ConfigError, initializer_range > 0 && initializer_range <= 1000,
               "model.initializer_range: ", initializer_range, " is outside (0, 1000]");
  check_range("model.max_position_embeddings", max_position_embeddings, 1, int64_t(1) << 40);
  for (auto [key, id] : {std::pair{"bos_token_id", bos_token_id}, {"eos_token_id", eos_token_id}})
    check_range(concat("model.", key), id, -1, vocab_size - 1);
  check_heads(*this);
  check_layer("model.", layer(-1));
  int64_t first = 0;
  for (size_t i = 0; i < layers.size(); first += layers[i++].repeat)
    check_layer(concat("model.layers[", i, "]."), layer(int(first)));
  check_rules(*this);
}

}  // namespace mmfree
