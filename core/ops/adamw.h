#pragma once
#include "core/tensor.h"

namespace mmfree {

/// Elements per block of the flat parameter buffers: every parameter starts on a block of its own, the rest is zero.
inline constexpr int64_t kParamBlock = 4096;

/// The largest norm of gradients, and of first moments, that an update is made with: f32 holds the squares.
inline constexpr double kMostNorm = 1e18;

/// What an update needs beside parameters, gradients and moments. It lives in an f64 tensor on the parameters' device
/// (see step_tensor), because a captured step must find its changing numbers in memory.
struct StepParams {
  double lr = 0;            ///< of this step, set by the host
  double decay_factor = 0;  ///< of every weight decay in this step, set by the host
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double clip = 0;              ///< largest gradient norm; 0: no clipping
  double updates = 0;           ///< updates made so far, skipped ones not counted
  double grad_norm = 0;         ///< L2 norm of all gradients of this step
  double grad_scale = 1;        ///< clip factor that multiplies every gradient
  double bias1 = 1, bias2 = 1;  ///< 1 − beta^updates
  double skip = 0;              ///< 1: see adamw_begin; parameters and moments stay as they are
};
inline constexpr int64_t kStepParams = sizeof(StepParams) / sizeof(double);

/// `step` as a tensor [kStepParams] f64 on `device`, and back.
Tensor step_tensor(const StepParams& step, Device device);
StepParams step_params(const Tensor& step);

/// From the gradients to the numbers of the update: grad_norm = sqrt(Σ grads²); unless skip: updates += 1,
/// bias1 = 1 − beta1^updates, bias2 likewise, grad_scale = min(1, clip / (grad_norm + 1e-6)).
///   skip = 1 if grad_norm is not below kMostNorm, Σ m² + |v| is not below kMostNorm², or lr, decay_factor, Σ |p| or
///   the loss is not finite
/// The sums are those that `adamw` left behind, so that parameters and moments need not be read again.
///
/// @param grads  [P] f32 | f64
/// @param step   [kStepParams] f64
/// @param sums   [2, P / kParamBlock] f64 as `adamw` leaves them; may be undefined: not looked at
/// @param loss   [1] f64; may be undefined: not looked at
/// @throws ShapeError, DTypeError, DeviceError
void adamw_begin(const Tensor& grads, Tensor& step, const Tensor& sums = Tensor(), const Tensor& loss = Tensor());

/// AdamW with decoupled weight decay over flat buffers (Loshchilov & Hutter 2019, arXiv:1711.05101), in one pass:
///   g = grad·grad_scale,  m = β1 m + (1−β1) g,  v = β2 v + (1−β2) g²
///   p = p (1 − r·decay) − r (m / bias1) / (sqrt(v / bias2) + eps)
///   with r = lr·lr_factor, decay = decay_factor·weight_decay
///
/// @param values, m, v  [P] f32 | f64, updated in place; P is a multiple of kParamBlock
/// @param grads         [P] the same dtype
/// @param rates         [P / kParamBlock, 2] f64: lr_factor and weight_decay of each block
/// @param step          [kStepParams] f64
/// @param sums          out [2, P / kParamBlock] f64: after the update, or as they stay if it is skipped, Σ |p| of each
///                      block, for `ternary_quantise_flat`, and Σ m² + |v|, for `adamw_begin`; may be undefined: not
///                      wanted
/// @throws ShapeError, DTypeError, DeviceError
void adamw(Tensor& values, const Tensor& grads, Tensor& m, Tensor& v, const Tensor& rates, const Tensor& step,
           Tensor& sums);

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
