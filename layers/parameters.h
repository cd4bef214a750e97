#pragma once
#include <string>
#include <vector>

#include "autograd/parameter.h"
#include "layers/declaration.h"
#include "layers/model_config.h"

/// Lists that follow from a model's declaration (layers/block.h), without parameter values.
namespace mmfree {

/// Every parameter of the model, its shape, initialisation and role, in the order of files. Names are those of the
/// published state dict, if it has them. Only `down_proj` is scaled by 1/sqrt(2L): the published code does not apply
/// that factor to o_proj.
std::vector<ParamSpec> parameter_specs(const ModelConfig& config);

/// One projection as declared.
struct ProjectionSpec {
  std::string path;  ///< "model.layers.0.attn.i_proj"
  std::string name;  ///< "i_proj"
  MatrixSpec matrix;
  Precision precision;
};

/// The projections in the order of parameter_specs.
std::vector<ProjectionSpec> projections(const ModelConfig& config);

/// Their names without duplicates, which a precision rule may use.
std::vector<std::string> projection_names(const ModelConfig& config);

/// The parameters that a ternary export stores as values: all but the matrices of ternary projections. A tied head has
/// no matrix in the file: it uses the embedding table.
std::vector<ParamSpec> unpacked_specs(const ModelConfig& config);

/// Floating-point operations of training per token, for sequences of `steps`: forward, and twice that backward; two per
/// weight of a matrix, and what token mixers do besides. What is computed again does not count.
double training_flops(const ModelConfig& config, int64_t steps);

}  // namespace mmfree
