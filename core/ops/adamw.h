#pragma once
#include <vector>

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
  double weight_decay = 0;  ///< of this step, set by the host
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
///   skip = 1 if grad_norm or ‖m‖ is not below kMostNorm, or lr, weight_decay or anything in `finite` is not finite
/// grads [P] P; step [kStepParams] f64; m [P] P or undefined; finite: f32 | f64 of any shape, such as values and v.
/// @throws ShapeError, DTypeError, DeviceError
void adamw_begin(const Tensor& grads, Tensor& step, const Tensor& m = Tensor(), const std::vector<Tensor>& finite = {});

/// AdamW with decoupled weight decay over flat buffers (Loshchilov & Hutter 2019, arXiv:1711.05101), in one pass:
///   g = grad·grad_scale,  m = β1 m + (1−β1) g,  v = β2 v + (1−β2) g²
///   p = p (1 − lr·decay) − lr (m / bias1) / (sqrt(v / bias2) + eps),  decay = weight_decay in blocks with the flag,
///   else 0
///
/// @param values, m, v  [P] f32 | f64, updated in place; P is a multiple of kParamBlock
/// @param grads         [P] the same dtype
/// @param decays        [P / kParamBlock] u8: 1 where weight decay applies
/// @param step          [kStepParams] f64
/// @param abs_sums      out [P / kParamBlock] f64: Σ |p| of each block after the update, for `ternary_quantise_flat`;
///                      may be undefined: not wanted
/// @throws ShapeError, DTypeError, DeviceError
void adamw(Tensor& values, const Tensor& grads, Tensor& m, Tensor& v, const Tensor& decays, const Tensor& step,
           Tensor& abs_sums);

struct AdamwArgs {
  void* values;
  const void* grads;
  void *m, *v;
  const uint8_t* decays;
  double* abs_sums;
  int64_t blocks;
  const StepParams* step;
  DType dtype;
};
struct AdamwBeginArgs {
  const double* sums;  ///< Σ grads², Σ m², and 0, or NaN where something is not finite
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
