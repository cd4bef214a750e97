#pragma once
#include <memory>
#include <string>

#include "autograd/ops.h"
#include "autograd/parameter.h"
#include "layers/model_config.h"

namespace mmfree {

/// A projection: y = round(RMSNorm(x; norm)) Ŵᵀ, without a norm y = round(x) Ŵᵀ. This struct only describes it: norm,
/// rounding and product are done by norm_linear, which computes several projections from one read of x. The rounding
/// and Ŵ follow from the precision: ternary, rounded to bf16, or W itself in f32. Ŵ is made once per parameter update
/// (`LM::requantise`) and used by all forward passes until the next.
struct BitLinear {
  /// eps of the projection's norm. As in the published code it does not depend on rms_norm_eps.
  static constexpr double kEps = 1e-6;

  std::string name;       ///< its path, such as "model.layers.0.attn.i_proj"
  std::string parameter;  ///< name of the parameter that holds W: name + ".weight", or that of the embedding table
  Precision precision = Precision::ternary;
  Var weight;                            ///< W [O, K], the latent weights; undefined in an exported model
  Var norm;                              ///< [K], weight of the projection's norm; undefined: no norm
  std::shared_ptr<WeightMatrix> matrix;  ///< Ŵ

  /// Whether W is a parameter of its own, not the embedding table.
  bool owns_matrix() const { return parameter == name + ".weight"; }
  /// Allocates Ŵ for activations of dtype `compute`. Does nothing without latent weights.
  void prepare(DType compute) const;
  /// Computes a bf16 Ŵ from the latent weights. Does nothing for other precisions or without latent weights.
  void round() const;
  /// The branch of norm_quant that makes this projection's input.
  Branch branch() const;
  Projection projection() const { return {branch(), weight, matrix.get()}; }
};

}  // namespace mmfree
