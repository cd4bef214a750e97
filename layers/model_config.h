#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "core/activation.h"

namespace mmfree {

/// The kinds of token mixer: it mixes along time. Each is a struct in layers/token/.
enum class TokenKind { mlgru, attention };

/// The kinds of channel mixer: it mixes along width. Each is a struct in layers/channel/.
enum class ChannelKind { glu, mlp };

/// What a projection multiplies: int8 activations and ternary weights; activations and weights both rounded to bf16; or
/// both in f32.
enum class Precision { ternary, bf16, f32 };

/// How the MLGRU's output gate combines the gate projection g with the scan's state h:
///   reference  RMS(g)·w ⊙ SiLU(h)   as the published weights were trained
///   fixed      RMS(h)·w ⊙ SiLU(g)
///   paper      h ⊙ σ(g)             no norm weight
enum class GateOrder { reference, fixed, paper };

const char* name_of(TokenKind k);
const char* name_of(ChannelKind k);
const char* name_of(Precision p);
const char* name_of(GateOrder g);

/// Every value of each enumeration, for lists of choices.
inline constexpr TokenKind kAllTokenKinds[] = {TokenKind::mlgru, TokenKind::attention};
inline constexpr ChannelKind kAllChannelKinds[] = {ChannelKind::glu, ChannelKind::mlp};
inline constexpr Precision kAllPrecisions[] = {Precision::ternary, Precision::bf16, Precision::f32};
inline constexpr GateOrder kAllGateOrders[] = {GateOrder::reference, GateOrder::fixed, GateOrder::paper};

/// The keys that describe a layer. `Of<T>` is T in a model and in a resolved layer; it is optional<T> in an entry of
/// `model.layers`, which has only the keys that differ from the model's.
template <template <class> class Of>
struct LayerKeys {
  Of<TokenKind> token{};
  Of<ChannelKind> channel{};
  Of<int64_t> heads{};              ///< H of a token mixer that has heads; 1 otherwise
  Of<int64_t> kv_heads{};           ///< heads of keys and values; 0: same as `heads`
  Of<int64_t> head_dim{};           ///< W, width of a head; 0: D / heads
  Of<double> rope_theta{};          ///< base of attention's rotary angles
  Of<int64_t> sliding_window{};     ///< most tokens that attention sees, the current one among them; 0: all
  Of<int64_t> intermediate_size{};  ///< I, width of the channel mixer; 0: see ModelConfig::hidden_ratio
  Of<Activation> activation{};      ///< of the channel mixer
  Of<bool> fused_gate{};            ///< the glu's gate and up projections are one matrix with one scale
  Of<Precision> precision{};        ///< of every projection that no rule names
  Of<bool> inner_norm{};            ///< each projection has an RMSNorm of its input, with a weight of its own
  Of<bool> sub_norm{};              ///< attention, glu and mlp normalise the input of their last projection
  Of<GateOrder> gate_order{};       ///< of the MLGRU
};

/// Calls f(a.key, b.key) for every key of two LayerKeys.
template <class A, class B, class F>
void zip_layer_keys(A& a, B& b, F&& f) {
  f(a.token, b.token);
  f(a.channel, b.channel);
  f(a.heads, b.heads);
  f(a.kv_heads, b.kv_heads);
  f(a.head_dim, b.head_dim);
  f(a.rope_theta, b.rope_theta);
  f(a.sliding_window, b.sliding_window);
  f(a.intermediate_size, b.intermediate_size);
  f(a.activation, b.activation);
  f(a.fused_gate, b.fused_gate);
  f(a.precision, b.precision);
  f(a.inner_norm, b.inner_norm);
  f(a.sub_norm, b.sub_norm);
  f(a.gate_order, b.gate_order);
}

/// `repeat` consecutive layers with the same keys.
struct LayerEntry : LayerKeys<std::optional> {
  int64_t repeat = 1;
};

/// Changes the precision, or the norm, of some projections of some layers.
struct PrecisionRule {
  std::vector<int> layers;                  ///< layer numbers from 0; empty: all layers and lm_head
  std::vector<std::string> projections;     ///< their names, such as i_proj; empty: all
  std::optional<Precision> precision = {};  ///< absent: unchanged
  std::optional<bool> inner_norm = {};      ///< absent: unchanged
};

struct LayerConfig;

/// Default of rope_theta, that of Llama.
inline constexpr double kRopeTheta = 10000;

/// Shape and numerics of one language model. Field names are those of Hugging Face's `hgrn_bit` config, if it has them.
/// The layer keys hold for every layer and the head.
struct ModelConfig : LayerKeys<std::type_identity_t> {
  int64_t vocab_size = 32000;        ///< V
  int64_t hidden_size = 256;         ///< D
  int64_t num_hidden_layers = 8;     ///< L; with `layers`: the sum of their `repeat`
  int64_t hidden_ratio = 4;          ///< I = 256·ceil(trunc(D·hidden_ratio·2/3) / 256) where intermediate_size is 0
  double rms_norm_eps = 1e-6;        ///< of block, final, gate and sub norm; see BitLinear::kEps for projections
  double initializer_range = 0.02;   ///< initial standard deviation of channel mixer, head and embedding
  bool use_lower_bound = true;       ///< learned lower bounds of the forget gate in layers >= 1
  bool tie_word_embeddings = false;  ///< the head multiplies by the embedding table
  std::vector<LayerEntry> layers;    ///< from the first layer on; empty: all layers have the model's keys
  std::vector<PrecisionRule> precision_rules;  ///< later rules win, over `layers` too
  int64_t max_position_embeddings = 2048;      ///< kept for import and export; nothing that is computed depends on it
  int64_t bos_token_id = 1;                    ///< -1: none
  int64_t eos_token_id = 2;                    ///< -1: none

  ModelConfig() {
    heads = 1;
    rope_theta = kRopeTheta;
    fused_gate = true;
    inner_norm = true;
  }
  /// I of a layer without a key of its own, and I for an `intermediate_size` of `size`.
  int64_t intermediate() const { return intermediate_of(intermediate_size); }
  int64_t intermediate_of(int64_t size) const;
  /// Sum of the list's `repeat`.
  int64_t listed_layers() const;
  /// Layer l with every key resolved; -1: the head.
  LayerConfig layer(int l) const;
  /// Whether all layers have the model's own keys.
  bool uniform() const { return layers.empty(); }
  /// Whether some layer has this token mixer.
  bool uses(TokenKind token) const;
  /// Number of parameters, and of those in matrices of projections (a tied head counts).
  int64_t parameter_count() const;
  int64_t matrix_parameter_count() const;
  /// @throws ConfigError naming the first invalid field
  void validate() const;
};

/// One layer of a model, every key resolved. Must not outlive the ModelConfig: it has a pointer to it.
struct LayerConfig : LayerKeys<std::type_identity_t> {
  int index;        ///< from 0; -1: the head
  int64_t width;    ///< D
  int64_t inner;    ///< I
  int64_t groups;   ///< G, heads of keys and values
  int64_t depth;    ///< L
  double norm_eps;  ///< ModelConfig::rms_norm_eps
  double std;       ///< ModelConfig::initializer_range
  const ModelConfig* model;

  /// Precision of the projection called `name`, and whether it normalises its input.
  Precision precision_of(const std::string& name) const;
  bool inner_norm_of(const std::string& name) const;
};

}  // namespace mmfree
