#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace mmfree {

/// How a projection multiplies: int8 activations by ternary weights, or the normalised activations by plain weights,
/// both rounded to bf16 or both kept in f32, on either device. The projection's own RMSNorm stays in every case.
enum class Precision { ternary, bf16, f32 };

/// How the MLGRU's output gate combines the gate projection g with the scan's state h:
///   reference  RMS(g)·w ⊙ SiLU(h)   as the published weights were trained
///   fixed      RMS(h)·w ⊙ SiLU(g)
///   paper      h ⊙ σ(g)             no norm weight
enum class GateOrder { reference, fixed, paper };

const char* name_of(Precision p);
const char* name_of(GateOrder g);

/// Changes the precision of some projections of some layers.
struct PrecisionRule {
  std::vector<int> layers;               ///< layer numbers from 0; empty: all layers and lm_head
  std::vector<std::string> projections;  ///< i_proj f_proj g_proj o_proj gate_proj down_proj lm_head; empty: all
  Precision precision = Precision::ternary;
};

/// Shape and numerics of one MatMul-free language model. Field names are those of Hugging Face's `hgrn_bit` config.
struct ModelConfig {
  int64_t vocab_size = 32000;       ///< V
  int64_t hidden_size = 256;        ///< D
  int64_t num_hidden_layers = 8;    ///< L
  int64_t intermediate_size = 0;    ///< I; 0: 256·ceil(trunc(D·hidden_ratio·2/3) / 256)
  int64_t hidden_ratio = 4;         ///< only used when intermediate_size is 0
  double rms_norm_eps = 1e-6;       ///< block norms, final norm and gate norm; BitLinear's own norm always has 1e-6
  double initializer_range = 0.02;  ///< std of gate, down, head and embedding at the start
  bool use_lower_bound = true;      ///< learned lower bounds of the forget gate in layers >= 1
  GateOrder gate_order = GateOrder::reference;
  Precision precision = Precision::ternary;    ///< of every projection that no rule names
  std::vector<PrecisionRule> precision_rules;  ///< later rules win
  int64_t max_position_embeddings = 2048;      ///< carried through import and export; the model has no positions
  int64_t bos_token_id = 1;                    ///< -1: none
  int64_t eos_token_id = 2;                    ///< -1: none

  /// I after the rule above is applied.
  int64_t intermediate() const;
  /// Precision of `projection` ("i_proj", ...) in `layer`; layer -1 is the head ("lm_head").
  Precision precision_of(int layer, const std::string& projection) const;
  /// Number of parameters, and of those in projection matrices.
  int64_t parameter_count() const;
  int64_t matrix_parameter_count() const;
  /// Throws ConfigError naming the first field that makes no sense.
  void validate() const;
};

}  // namespace mmfree
