#pragma once
#include "core/tensor.h"

namespace mmfree {

/// The MLGRU recurrence with its gates, elementwise over channels and sequential in time:
///   s = σ(z_t),  f = gamma + (1 − gamma) ⊙ s   (f = s without gamma)
///   h_t = f ⊙ h_{t−1} + SiLU(a_t) ⊙ (1 − f)
/// At a start h_{t−1} counts as 0, also where it is h0: what came before is forgotten, and no gradient flows there. The
/// state is kept in P. The CPU computes step after step, so training, prefill and decoding give the same bits. A
/// GPU composes chunks of time, so these three agree up to rounding.
///
/// @param z      [B, T, D] A: forget pre-activation (f_proj output)
/// @param a      [B, T, D] A: candidate pre-activation (i_proj output)
/// @param gamma  [D] P: the layer's lower bound, 0 <= gamma < 1; or undefined
/// @param h0     [B, D] P: state before the first step; or undefined = zeros
/// @param starts [B, T] u8: 1 where a document starts, else 0; or undefined = all 0
/// @param h      [B, T, D] A, out
/// @param last   [B, D] P, out: the state after the last step; may be undefined: not wanted. May be h0 itself.
/// @throws ShapeError, DTypeError, DeviceError. Source: Zhu et al. 2024 (arXiv:2406.02528).
void mlgru_scan(const Tensor& z, const Tensor& a, const Tensor& gamma, const Tensor& h0, const Tensor& starts,
                Tensor& h, Tensor& last);

/// Backward: the exact derivative; h0 gets no gradient. h, dh, dz, da [B, T, D] A; dz and da are overwritten. dgamma
/// [D] P = beta·dgamma + Σ_{b,t}; may be undefined: not wanted. @throws ShapeError, DTypeError, DeviceError
///   g_t = dh_t + f_{t+1} g_{t+1} (dh_t alone if t+1 is a start),  df = g_t (h_{t−1} − SiLU(a_t)),  da = g_t (1 − f)
///   SiLU'(a_t) dz = df (1 − gamma) s (1 − s),  dgamma = Σ df (1 − s)
void mlgru_scan_backward(const Tensor& z, const Tensor& a, const Tensor& gamma, const Tensor& h0, const Tensor& starts,
                         const Tensor& h, const Tensor& dh, Tensor& dz, Tensor& da, Tensor& dgamma, double beta_gamma);

struct MlgruScanArgs {
  const void *z, *a, *gamma, *h0;
  const uint8_t* starts;
  void *h, *last;
  int64_t b, t, d;
  DType dtype;
};

struct MlgruScanBackwardArgs {
  const void *z, *a, *gamma, *h0, *h, *dh;
  const uint8_t* starts;
  void *dz, *da, *dgamma;
  double beta_gamma;
  int64_t b, t, d;
  DType dtype;
};

namespace cpu {
void mlgru_scan(const MlgruScanArgs&);
void mlgru_scan_backward(const MlgruScanBackwardArgs&);
}  // namespace cpu
namespace cuda {
void mlgru_scan(const MlgruScanArgs&);
void mlgru_scan_backward(const MlgruScanBackwardArgs&);
}  // namespace cuda

}  // namespace mmfree
