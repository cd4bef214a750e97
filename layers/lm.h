#pragma once
#include <functional>
#include <optional>
#include <vector>

#include "core/ops/ternary.h"
#include "layers/block.h"
#include "layers/shared_codes.h"

namespace mmfree {

/// A copy of a floating-point tensor as f32 on the host.
Tensor host_f32(const Tensor& t);

/// How the tokens of a call, [B·T], divide into sequences, and what comes before them.
struct Sequences {
  int64_t batch;       ///< B sequences of one length T, one behind the other
  Tensor starts;       ///< [B·T] u8: 1 where a document starts, which forgets what came before; undefined: nowhere
  DecodeState* state;  ///< what came before the first tokens, read and updated; null: nothing
  Sequences(int64_t batch, Tensor starts = {}, DecodeState* state = nullptr)  // NOLINT: a number of sequences
      : batch(batch), starts(std::move(starts)), state(state) {}
  Sequences(int64_t batch, DecodeState* state) : batch(batch), state(state) {}
};

/// Rows [begin, end) of a tensor.
struct RowRange {
  int64_t begin, end;
};

/// The products of a model's backward pass. Projections of precision f32 are always computed as they are.
struct BackwardProducts {
  Products ternary = Products::compute;  ///< of ternary projections other than the head
  /// Of the head and of bf16 projections: not int8, in which the gradients of a softmax lose all but the target.
  Products other = Products::compute;
};

/// A language model with the parts of layers/block.h: embedding, blocks, final norm, head. With the default
/// configuration it is the MatMul-free LM (Zhu et al. 2024, arXiv:2406.02528).
///
/// Activations have the dtype `compute`: that of the parameters, or bf16 on a GPU. The residual stream, the rstd of
/// norms and the state of the recurrence have the dtype of the parameters.
class LM {
 public:
  /// Keeps a reference to `params`, which must outlive the model. If `params` has the latent matrices, call
  /// `requantise` after every change of the parameters, and of a divided store before the first use. If not (see
  /// unpacked_specs), the caller fills each projection's `matrix`. If `table` is defined it is the embedding table, in
  /// any store, and `params` has none; then the caller fills the matrix of a tied head too.
  LM(const ParamStore& params, const ModelConfig& config, DType compute, BackwardProducts backward = {},
     const QuantTensor& table = {});
  LM(const ParamStore& params, const ModelConfig& config) : LM(params, config, params.dtype()) {}
  LM(const LM&) = delete;

  /// Changes the products of later backward passes; before the first one.
  void set_backward(BackwardProducts backward);

  const ModelConfig& config() const { return config_; }
  const ModelParts& parts() const { return parts_; }
  Device device() const { return params_.device(); }
  /// Computes every projection's `matrix` from the latent weights. Of a divided store each rank computes the ternary
  /// matrices of its piece, and sends the others their codes and scales: then collective. `abs_sums` as
  /// Optimizer::abs_sums, or undefined.
  void requantise(const Tensor& abs_sums = Tensor()) const;
  /// The same of a divided store in steps, for each part of the ranks' pieces: computes this rank's ternary matrices in
  /// it and gives what the ranks then have to gather; puts in place what they have gathered. The part's abs_sums must
  /// be there. Then, when all values that forward passes read are there, what follows from these.
  std::vector<Group::Gather> offer_codes(size_t part, const Tensor& abs_sums) const;
  void take_codes(size_t part) const;
  void round_others() const;
  void for_each_projection(const std::function<void(const BitLinear&)>& visit) const {
    for (const BitLinear* p : projections_) visit(*p);
  }

  /// The input of each block, then the output of the final norm; for comparisons with other programs.
  using Trace = std::vector<Tensor>;

  /// ids [B·T] i32 → [B·T, D], normalised and rounded for the head. With `selective` the last `keep_blocks` blocks, or
  /// all if there are fewer, keep what the others compute again. It is free for the last one: the backward pass begins
  /// there, and would compute it at once. reached: see StepContext; the last call is for the first parameter. It must
  /// outlive the tape.
  Var hidden(const Tensor& ids, const Sequences& sequences, Trace* trace = nullptr,
             Recompute recompute = Recompute::none, int64_t keep_blocks = 1, const Reached* reached = nullptr) const;
  /// scale · Σ nll(targets) as an f64 tensor [1]; targets [B·T] i32. A target kIgnoreTarget is not scored.
  /// No gradient flows into a decode state; its old tensors must stay as they are until the backward pass is over.
  Var loss(const Tensor& ids, const Tensor& targets, const Sequences& sequences, const LossScale& scale,
           Recompute recompute = Recompute::none, int64_t keep_blocks = 1, const Reached* reached = nullptr) const;
  /// Logits [B·T, V].
  Tensor logits(const Tensor& ids, const Sequences& sequences) const;
  /// Logits [R, V] of some of the B·T positions, given as ranges in ascending order.
  Tensor logits_at(const Tensor& ids, const Sequences& sequences, const std::vector<RowRange>& positions) const;
  /// Logits [B, V] of each sequence's last position only.
  Tensor next_logits(const Tensor& ids, int64_t batch, DecodeState& state) const;
  /// The state before the first token of `batch` sequences, as tensors of zeros.
  DecodeState zero_state(int64_t batch) const;
  /// −log p of each target [B·T], nats; 0 where not scored.
  Tensor nll(const Tensor& ids, const Tensor& targets, const Sequences& sequences) const;

 private:
  Tensor head(const QuantTensor& q) const;
  void share_codes();
  const ParamStore& params_;
  ModelConfig config_;
  DType compute_;
  ModelParts parts_;
  std::vector<const BitLinear*> projections_;
  mutable std::vector<TernaryJob> ternary_;    ///< every ternary matrix with latents, if no others have a part in them
  mutable std::optional<SharedCodes> shared_;  ///< of a divided store
};

}  // namespace mmfree
