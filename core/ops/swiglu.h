#pragma once
#include "core/tensor.h"

namespace mmfree {

/// y = SiLU(x[:, :I]) ⊙ x[:, I:].  x [N, 2I] A: gate and up halves side by side; y [N, I] A, out.
/// @throws ShapeError, DTypeError. y must not alias x. Source: Shazeer 2020 (arXiv:2002.05202).
void swiglu(const Tensor& x, Tensor& y);

/// dx[:, :I] = dy ⊙ up ⊙ SiLU'(gate),  dx[:, I:] = dy ⊙ SiLU(gate); dx is overwritten.
void swiglu_backward(const Tensor& x, const Tensor& dy, Tensor& dx);

struct SwigluArgs {
  const void *x, *dy;
  void* out;  ///< y forward, dx backward
  int64_t n, i;
  DType dtype;
};

namespace cpu {
void swiglu(const SwigluArgs&);
void swiglu_backward(const SwigluArgs&);
}  // namespace cpu
namespace cuda {
void swiglu(const SwigluArgs&);
void swiglu_backward(const SwigluArgs&);
}  // namespace cuda

}  // namespace mmfree
