#pragma once
#include <memory>
#include <string>

#include "autograd/ops.h"
#include "autograd/parameter.h"
#include "layers/model_config.h"

namespace mmfree {

/// A projection with a norm of its own: y = round(RMSNorm(x)) Ŵᵀ. Norm and rounding are done by the
/// caller's `norm_quant`, which serves several projections from one read of x; this struct says what it wants
/// (`branch`) and multiplies. Ŵ is made once per parameter update (`requantise`) and shared by all forward passes.
struct BitLinear {
  /// eps inside the projection's own norm, whatever the model's rms_norm_eps, as in the published code.
  static constexpr double kEps = 1e-6;

  std::string name;  ///< state-dict name without ".weight"
  Precision precision;
  Var weight;                            ///< [O, K] latent; undefined in an exported model
  Var norm;                              ///< [K]
  std::shared_ptr<WeightMatrix> matrix;  ///< Ŵ

  BitLinear(const ParamStore& params, const std::string& name, Precision precision);
  /// Makes Ŵ from the latent weights; does nothing without latents.
  void requantise() const;
  Branch branch() const;
  /// x as `norm_quant` made it for `branch()`.
  Var operator()(const Var& x) const { return linear(x, weight, *matrix); }
  /// Norm, round and multiply for a projection that shares its input with no other.
  Var from_plain(const Var& x) const { return (*this)(norm_quant(x, Var(), kEps, kEps, {branch()})[0]); }
};

}  // namespace mmfree
