#include "layers/bitlinear.h"

#include "core/ops/elementwise.h"

namespace mmfree {

void BitLinear::prepare(DType compute) const {
  if (!weight.defined()) return;
  const Tensor& latent = weight.value();
  if (precision == Precision::ternary)
    matrix->ternary = make_ternary(latent.dim(0), latent.dim(1), latent.dtype(), latent.device());
  else if (precision == Precision::f32)
    matrix->plain = latent;
  else
    matrix->plain = Tensor(latent.shape(), compute, latent.device());
}

void BitLinear::round() const {
  if (!weight.defined() || precision != Precision::bf16) return;
  if (matrix->plain.dtype() == DType::bf16) return cast(weight.value(), matrix->plain);
  Tensor rounded(weight.shape(), DType::bf16, weight.device());
  cast(weight.value(), rounded);
  cast(rounded, matrix->plain);
}

Branch BitLinear::branch() const {
  return {norm, precision == Precision::ternary ? Rounding::int8
                : precision == Precision::bf16  ? Rounding::bf16
                                                : Rounding::none};
}

}  // namespace mmfree
