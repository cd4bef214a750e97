#pragma once
#include "core/tensor.h"

namespace mmfree {

/// Elements per block of the flat parameter buffers. Every parameter starts on a new block; padding is zero.
inline constexpr int64_t kParamBlock = 4096;

/// An update is made only if the norms of gradients and of first moments are below this. f32 can hold the square.
inline constexpr double kMostNorm = 1e18;

/// The scalars of an update. They are in an f64 tensor on the parameters' device (see step_tensor), because a recorded
/// step can only read what changes between replays from memory.
struct StepParams {
  double lr = 0;            ///< learning rate of this step, set by the host
  double decay_factor = 0;  ///< factor of all weight decays in this step, set by the host
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double clip = 0;              ///< largest gradient norm; 0: no clipping
  double updates = 0;           ///< updates made so far, skipped ones not counted
  double grad_norm = 0;         ///< L2 norm of all gradients of this step
  double grad_scale = 1;        ///< clip factor that multiplies every gradient
  double bias1 = 1, bias2 = 1;  ///< 1 − beta^updates
  double skip = 0;              ///< not 0: the update changes no parameter and no moment (see adamw_begin)
  double outlier = 0;           ///< a norm above so many times norm_mean skips the update; 0: none does
  double norm_mean = 0;         ///< running mean of the gradient norms of updates
  double norms = 0;             ///< so many norms are in it
};
/// An update counts as 1 / min(norms, kNormWindow) in StepParams::norm_mean; before kNormsNeeded no norm is an outlier.
inline constexpr double kNormWindow = 100, kNormsNeeded = 20;
/// StepParams::skip.
inline constexpr double kSkipUnsound = 1, kSkipOutlier = 2;
inline constexpr int64_t kStepParams = sizeof(StepParams) / sizeof(double);

/// `step` as a tensor [kStepParams] f64 on `device`, and back.
Tensor step_tensor(const StepParams& step, Device device);
StepParams step_params(const Tensor& step);

/// Computes the scalars of the update: grad_norm = sqrt(Σ grads²); if skip becomes 0 also updates += 1, norms += 1,
/// bias1 = 1 − beta1^updates, bias2 = 1 − beta2^updates, grad_scale = min(1, clip / (grad_norm + 1e-6)),
/// norm_mean += (grad_norm − norm_mean) / min(norms, kNormWindow).
///   skip = kSkipUnsound if grad_norm is not below kMostNorm, Σ m² + |v| is not below kMostNorm², or lr, decay_factor,
///   Σ |p| or the loss is not finite; else kSkipOutlier if outlier > 0, norms >= kNormsNeeded and
///   grad_norm > outlier · norm_mean; else 0
/// Σ |p| and Σ m² + |v| come from `sums`, which the last `adamw` wrote, so parameters and moments are not read again.
///
/// @param grads  [P] f32 | f64
/// @param step   [kStepParams] f64
/// @param sums   [2, P / kParamBlock] f64 as `adamw` writes them; undefined: not checked
/// @param loss   [1] f64; undefined: not checked
/// @throws ShapeError, DTypeError, DeviceError
void adamw_begin(const Tensor& grads, Tensor& step, const Tensor& sums = Tensor(), const Tensor& loss = Tensor());

/// The same where of the gradients only `squares` [P / kParamBlock] f64 are given, as squares_of_blocks computes them.
void adamw_begin_blocks(const Tensor& squares, Tensor& step, const Tensor& sums = Tensor(),
                        const Tensor& loss = Tensor());

/// AdamW with decoupled weight decay over flat buffers (Loshchilov & Hutter 2019, arXiv:1711.05101), in one pass:
///   g = grad·grad_scale,  m = β1 m + (1−β1) g,  v = β2 v + (1−β2) g²
///   p = p (1 − r·decay) − r (m / bias1) / (sqrt(v / bias2) + eps)
///   with r = lr·lr_factor, decay = decay_factor·weight_decay
///
/// @param values, m, v  [P] f32 | f64, updated in place; P is a multiple of kParamBlock
/// @param grads         [P] the same dtype
/// @param rates         [P / kParamBlock, 2] f64: lr_factor and weight_decay of each block
/// @param step          [kStepParams] f64
/// @param sums          out [2, P / kParamBlock] f64, may be undefined. Row 0: Σ |p| of each block, for
///                      `ternary_quantise_flat`; row 1: Σ m² + |v|, for `adamw_begin`. Both of the values after the
///                      call, also if the update is skipped
/// @throws ShapeError, DTypeError, DeviceError
void adamw(Tensor& values, const Tensor& grads, Tensor& m, Tensor& v, const Tensor& rates, const Tensor& step,
           Tensor& sums);

/// The same with the rows of `sums` as tensors of their own, [P / kParamBlock] each, both or neither: for a part of
/// larger buffers.
void adamw(Tensor& values, const Tensor& grads, Tensor& m, Tensor& v, const Tensor& rates, const Tensor& step,
           Tensor& abs_sums, Tensor& moment_sums);

struct AdamwArgs {
  void* values;
  const void* grads;
  void *m, *v;
  const double* rates;
  double *abs_sums, *moment_sums;  ///< both or neither
  int64_t blocks;
  const StepParams* step;
  DType dtype;
};
struct AdamwBeginArgs {
  const double* sums;  ///< Σ grads², Σ m² + |v|, and 0, or NaN where something is not finite
  StepParams* step;
};

namespace cpu {
void adamw_begin(const AdamwBeginArgs&);
void adamw(const AdamwArgs&);
}  // namespace cpu
namespace cuda {
void adamw_begin(const AdamwBeginArgs&);
void adamw(const AdamwArgs&);
}  // namespace cuda

}  // namespace mmfree
