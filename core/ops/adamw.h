#pragma once
#include "core/tensor.h"

namespace mmfree {

/// Elements per block of the flat parameter buffers: every parameter starts on a block of its own, the rest is zero.
inline constexpr int64_t kParamBlock = 4096;

/// What changes from step to step; on a GPU it lives in device memory, because arguments of a captured step are frozen.
struct StepParams {
  double lr = 0;
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double weight_decay = 0;
  double bias1 = 1, bias2 = 1;  ///< 1 − beta^t, t = number of updates including this one
  double grad_scale = 1;        ///< clip factor that multiplies every gradient
  bool skip = false;            ///< leave parameters and moments as they are
};

/// AdamW with decoupled weight decay over flat buffers (Loshchilov & Hutter 2019, arXiv:1711.05101), in one pass:
///   g = grad·grad_scale,  m = β1 m + (1−β1) g,  v = β2 v + (1−β2) g²
///   p = p (1 − lr·decay) − lr (m / bias1) / (sqrt(v / bias2) + eps),  decay = weight_decay in blocks with the flag,
///   else 0
///
/// @param values, m, v  [P] T (f32 | f64), updated in place; P is a multiple of kParamBlock
/// @param grads         [P] T
/// @param decays        [P / kParamBlock] u8: 1 where weight decay applies
/// @throws ShapeError, DTypeError
void adamw(Tensor& values, const Tensor& grads, Tensor& m, Tensor& v, const Tensor& decays, const StepParams& step);

struct AdamwArgs {
  void* values;
  const void* grads;
  void *m, *v;
  const uint8_t* decays;
  int64_t blocks;
  const StepParams* step;
  DType dtype;
};

namespace cpu {
void adamw(const AdamwArgs&);
}
namespace cuda {
void adamw(const AdamwArgs&);
}

}  // namespace mmfree
