#pragma once
#include "core/ops/linear.h"

namespace mmfree {

/// Targets with this value are not scored.
inline constexpr int32_t kIgnoreTarget = -100;

/// Rows of logits that are in memory at a time: 512 on the CPU; on a GPU as many as fit in 256 MiB of bf16, at least
/// 512.
int64_t head_rows(int64_t vocab, Device device);

/// Factor of a summed loss, such as 1 / (number of scored targets): a number, or an f64 tensor [1] on the device of the
/// loss, which a recorded step reads at each replay.
class LossScale {
 public:
  LossScale(double value) : value_(value) {}                // NOLINT: a plain number fits
  LossScale(Tensor tensor) : tensor_(std::move(tensor)) {}  // NOLINT
  /// As a tensor [1] f64 on `device`. @throws ShapeError, DTypeError, DeviceError
  Tensor on(Device device) const;

 private:
  double value_ = 1;
  Tensor tensor_;
};

/// Where the gradients of `head_loss` go; an undefined tensor is not wanted.
struct HeadLossGrads {
  Tensor dq;  ///< [N, K] A, overwritten
  Tensor dw;  ///< [V, K] P, = beta·dw + …
  double beta_w = 0;
  Tensor scale;  ///< [1] f64: factor of the summed loss
};

/// Cross entropy of the output projection. Logits are made in blocks of head_rows rows, never all at once:
///   logits = q Wᵀ,  nll_n = log Σ_v exp(logits_nv) − logits_n,target_n   (0 where the target is kIgnoreTarget)
///   dlogits = (softmax − onehot)·scale,  dq = dlogits W,  dw = beta·dw + dlogitsᵀ q
///
/// @param q        [N, K] activations as `linear` takes them
/// @param w        [V, K]
/// @param targets  [N] i32, each kIgnoreTarget or in 0..V−1
/// @param nll      [N] P, out: unscaled, nats
/// @param grads    where gradients go; null: none
/// @throws ShapeError, DTypeError, DeviceError. A target outside the vocabulary: on the CPU a DataError that names it,
/// on a GPU a NaN.
void head_loss(const QuantTensor& q, const WeightMatrix& w, const Tensor& targets, Tensor& nll, HeadLossGrads* grads);

struct SoftmaxNllArgs {
  void* logits;  ///< [N, V] A; replaced by (softmax − onehot)·scale when `gradient`
  const int32_t* targets;
  void* nll;  ///< [N] P
  int64_t n, v;
  const double* scale;  ///< [1]; null without `gradient`
  bool gradient;
  DType dtype;
};

namespace cpu {
void softmax_nll(const SoftmaxNllArgs&);
}
namespace cuda {
void softmax_nll(const SoftmaxNllArgs&);
}

}  // namespace mmfree
