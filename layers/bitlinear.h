#pragma once
#include <memory>
#include <string>

#include "autograd/ops.h"
#include "autograd/parameter.h"
#include "layers/model_config.h"

namespace mmfree {

/// A projection with a norm of its own: y = round(RMSNorm(x)) Ŵᵀ. It says what it wants (`projection`, `branch`); norm,
/// rounding and product are done by norm_linear, which serves several projections from one read of x. Ŵ is made once
/// per parameter update (`LM::requantise`) and shared by all forward passes.
struct BitLinear {
  /// eps inside the projection's own norm, whatever the model's rms_norm_eps, as in the published code.
  static constexpr double kEps = 1e-6;

  std::string name;  ///< state-dict name without ".weight"
  Precision precision;
  Var weight;                            ///< [O, K] latent; undefined in an exported model
  Var norm;                              ///< [K]
  std::shared_ptr<WeightMatrix> matrix;  ///< Ŵ

  BitLinear(const ParamStore& params, const std::string& name, Precision precision);
  /// Allocates Ŵ for products in `compute`; does nothing without latents.
  void prepare(DType compute) const;
  /// Makes a Ŵ that is not ternary from the latent weights; does nothing without latents.
  void round() const;
  Branch branch() const;
  Projection projection() const { return {branch(), weight, matrix.get()}; }
};

}  // namespace mmfree
