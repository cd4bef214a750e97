#include "layers/bitlinear.h"

#include "core/ops/elementwise.h"

namespace mmfree {

BitLinear::BitLinear(const ParamStore& params, const std::string& name, Precision precision)
    : name(name), precision(precision), norm(params[name + ".norm.weight"]), matrix(std::make_shared<WeightMatrix>()) {
  if (params.has(name + ".weight")) weight = params[name + ".weight"];
}

void BitLinear::requantise() const {
  if (!weight.defined()) return;
  const Tensor& latent = weight.value();
  if (precision == Precision::ternary) {
    if (!matrix->ternary.codes.defined()) matrix->ternary = make_ternary(latent.dim(0), latent.dim(1), latent.dtype());
    ternary_quantise(latent, matrix->ternary);
  } else if (precision == Precision::bf16) {
    Tensor rounded(latent.shape(), DType::bf16);
    cast(latent, rounded);
    if (!matrix->plain.defined()) matrix->plain = Tensor(latent.shape(), latent.dtype());
    cast(rounded, matrix->plain);
  } else {
    matrix->plain = latent;
  }
}

Branch BitLinear::branch() const {
  return {norm, precision == Precision::ternary ? Rounding::int8
                : precision == Precision::bf16  ? Rounding::bf16
                                                : Rounding::none};
}

}  // namespace mmfree
