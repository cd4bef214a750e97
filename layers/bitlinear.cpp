#include "layers/bitlinear.h"

#include "core/ops/elementwise.h"

namespace mmfree {

void BitLinear::prepare(DType compute) const {
  if (!weight.defined()) return;
  const Tensor& latent = weight.value();
  if (precision == Precision::ternary)
    matrix->ternary = make_ternary(latent.dim(0), latent.dim(1), latent.dtype(), latent.device());
  else if (precision == Precision::f32 && compute == latent.dtype())
    matrix->plain = latent;
  else
    matrix->plain = Tensor(latent.shape(), compute, latent.device());
}

void BitLinear::round() const {
  if (!weight.defined() || precision == Precision::ternary) return;
  const Tensor& latent = weight.value();
  if (precision == Precision::bf16 && matrix->plain.dtype() != DType::bf16) {
    Tensor rounded(latent.shape(), DType::bf16, latent.device());
    cast(latent, rounded);
    cast(rounded, matrix->plain);
  } else if (matrix->plain.raw() != latent.raw()) {
    cast(latent, matrix->plain);
  }
}

Branch BitLinear::branch() const {
  return {norm, precision == Precision::ternary ? Rounding::int8
                : precision == Precision::bf16  ? Rounding::bf16
                                                : Rounding::none};
}

}  // namespace mmfree
