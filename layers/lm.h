#pragma once
#include <functional>
#include <vector>

#include "core/ops/ternary.h"
#include "layers/block.h"
#include "layers/decode/state.h"

namespace mmfree {

/// A float tensor from any device as f32 on the host.
Tensor host_f32(const Tensor& t);

/// The MatMul-free language model: embedding, blocks, final norm, ternary head (Zhu et al. 2024, arXiv:2406.02528).
///
/// Activations have the dtype `compute`: that of the parameters, or on a GPU bf16. The residual stream, norms'
/// statistics and the recurrence's state keep the parameters' dtype.
class LM {
 public:
  /// Refers to `params`, which must outlive it. Without latent matrices (see unpacked_specs) the caller fills each
  /// projection's `matrix`; with them call `requantise` after every change of the parameters.
  LM(const ParamStore& params, const ModelConfig& config, DType compute);
  LM(const ParamStore& params, const ModelConfig& config) : LM(params, config, params.dtype()) {}
  LM(const LM&) = delete;

  const ModelConfig& config() const { return config_; }
  Device device() const { return params_.device(); }
  /// Makes every projection's matrix from the latent weights. `abs_sums` as Optimizer::abs_sums, or undefined.
  void requantise(const Tensor& abs_sums = Tensor()) const;
  void for_each_projection(const std::function<void(const BitLinear&)>& visit) const;

  /// Residual streams seen on the way, for comparisons: the input of each block, then the final norm's output.
  using Trace = std::vector<Tensor>;

  /// ids [B·T] i32 → [B·T, D], normalised and rounded for the head. `state` as in MlGru, per layer.
  Var hidden(const Tensor& ids, int64_t batch, DecodeState* state = nullptr, Trace* trace = nullptr,
             Recompute recompute = Recompute::none) const;
  /// scale · Σ nll(targets) as an f64 tensor [1]; targets [B·T] i32, kIgnoreTarget is not scored.
  Var loss(const Tensor& ids, const Tensor& targets, int64_t batch, const LossScale& scale,
           Recompute recompute = Recompute::none) const;
  /// Logits [B·T, V].
  Tensor logits(const Tensor& ids, int64_t batch, DecodeState* state = nullptr) const;
  /// Logits [B, V] of each sequence's last position only.
  Tensor next_logits(const Tensor& ids, int64_t batch, DecodeState& state) const;
  /// −log p of each target [B·T], nats; 0 where not scored.
  Tensor nll(const Tensor& ids, const Tensor& targets, int64_t batch, DecodeState* state = nullptr) const;

 private:
  Tensor head(const QuantTensor& q) const;
  const ParamStore& params_;
  ModelConfig config_;
  DType compute_;
  Var embeddings_, lower_bounds_, norm_;
  std::vector<Block> blocks_;
  BitLinear lm_head_;
  mutable std::vector<TernaryJob> ternary_;  ///< every ternary matrix with latents
};

}  // namespace mmfree
