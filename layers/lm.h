#pragma once
#include <functional>
#include <vector>

#include "layers/block.h"
#include "layers/decode_state.h"

namespace mmfree {

/// The MatMul-free language model: embedding, blocks, final norm, ternary head (Zhu et al. 2024, arXiv:2406.02528).
class LM {
 public:
  /// Refers to `params`, which must outlive it. Without latent matrices (see unpacked_specs) the caller fills each
  /// projection's `matrix`; with them call `requantise` after every change of the parameters.
  LM(const ParamStore& params, const ModelConfig& config);
  LM(const LM&) = delete;

  const ModelConfig& config() const { return config_; }
  void requantise() const;
  void for_each_projection(const std::function<void(const BitLinear&)>& visit) const;

  /// Residual streams seen on the way, for comparisons: the input of each block, then the final norm's output.
  using Trace = std::vector<Tensor>;

  /// ids [B·T] i32 → [B·T, D], normalised and rounded for the head. `state` as in MlGru, per layer.
  Var hidden(const Tensor& ids, int64_t batch, DecodeState* state = nullptr, Trace* trace = nullptr) const;
  /// scale · Σ nll(targets) as a tensor [1]; targets [B·T] i32, kIgnoreTarget is not scored.
  Var loss(const Tensor& ids, const Tensor& targets, int64_t batch, double scale) const;
  /// Logits [B·T, V].
  Tensor logits(const Tensor& ids, int64_t batch, DecodeState* state = nullptr) const;
  /// Logits [B, V] of each sequence's last position only.
  Tensor next_logits(const Tensor& ids, int64_t batch, DecodeState& state) const;
  /// −log p of each target [B·T], nats; 0 where not scored.
  Tensor nll(const Tensor& ids, const Tensor& targets, int64_t batch, DecodeState* state = nullptr) const;

 private:
  Tensor head(const QuantTensor& q) const;
  ModelConfig config_;
  Var embeddings_, lower_bounds_, norm_;
  std::vector<Block> blocks_;
  BitLinear lm_head_;
};

}  // namespace mmfree
