#pragma once
#include "core/ops/linear.h"

namespace mmfree {

/// Targets with this value are not scored.
inline constexpr int32_t kIgnoreTarget = -100;

/// Rows of logits that exist at a time.
inline constexpr int64_t kHeadRows = 512;

/// Where the gradients of `head_loss` go; an undefined tensor is not wanted.
struct HeadLossGrads {
  Tensor dq;  ///< [N, K] T, overwritten
  Tensor dw;  ///< [V, K] T, = beta·dw + …
  double beta_w = 0;
};

/// Cross entropy of a head, in blocks of kHeadRows rows, so that all logits never exist at once:
///   logits = q Wᵀ,  nll_n = log Σ_v exp(logits_nv) − logits_n,target_n   (0 where the target is kIgnoreTarget)
///   dlogits = (softmax − onehot)·scale,  dq = dlogits W,  dw = beta·dw + dlogitsᵀ q
///
/// @param q        [N, K] activations as `linear` takes them
/// @param w        [V, K]
/// @param targets  [N] i32, each kIgnoreTarget or in 0..V−1
/// @param scale    factor of the summed loss, for example 1 / scored positions
/// @param nll      [N] T, out: unscaled, nats
/// @throws ShapeError, DTypeError, DataError for a target outside the vocabulary.
void head_loss(const QuantTensor& q, const WeightMatrix& w, const Tensor& targets, double scale, Tensor& nll,
               HeadLossGrads* grads);

struct SoftmaxNllArgs {
  void* logits;  ///< [N, V]; replaced by (softmax − onehot)·scale when `gradient`
  const int32_t* targets;
  void* nll;
  int64_t n, v;
  double scale;
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
