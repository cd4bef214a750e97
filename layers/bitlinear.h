#pragma once
#include <memory>
#include <string>

#include "autograd/ops.h"
#include "autograd/parameter.h"
#include "layers/model_config.h"

namespace mmfree {

/// A projection: y = round(RMSNorm(x; norm)) Ŵᵀ, without the norm y = round(x) Ŵᵀ. It says what it wants (`projection`,
/// `branch`); norm, rounding and product are done by norm_linear, which serves several projections from one read of x.
/// Ŵ is ternary, or plain where the precision says so. It is made once per parameter update (`LM::requantise`) and
/// shared by all forward passes.
struct BitLinear {
  /// eps inside the projection's own norm, whatever the model's rms_norm_eps, as in the published code.
  static constexpr double kEps = 1e-6;

  std::string name;       ///< its path, such as "model.layers.0.attn.i_proj"
  std::string parameter;  ///< name of the parameter that holds W: name + ".weight", or that of the embedding table
  Precision precision = Precision::ternary;
  Var weight;                            ///< W [O, K], the latent weights; undefined in an exported model
  Var norm;                              ///< [K]; undefined: no norm of its own
  std::shared_ptr<WeightMatrix> matrix;  ///< Ŵ

  /// Whether W is a parameter of its own.
  bool owns_matrix() const { return parameter == name + ".weight"; }
  /// Allocates Ŵ for products in `compute`; does nothing without latent weights.
  void prepare(DType compute) const;
  /// Makes a Ŵ that is not ternary from the latent weights; does nothing without them.
  void round() const;
  Branch branch() const;
  Projection projection() const { return {branch(), weight, matrix.get()}; }
};

}  // namespace mmfree
