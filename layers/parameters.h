#pragma once
#include <string>
#include <vector>

#include "autograd/parameter.h"
#include "layers/declaration.h"
#include "layers/model_config.h"

/// What follows from a model's declaration (layers/block.h) without its values.
namespace mmfree {

/// Every parameter of the model, its shape, initialisation and role, in the order of files. Names are those of the
/// published state dict where it has them. Only `down_proj` gets the 1/sqrt(2L) rescale: in the published code it never
/// reaches o_proj.
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

/// Their names, each once: what a precision rule may name.
std::vector<std::string> projection_names(const ModelConfig& config);

/// The parameters that an exported model keeps as they are: all but the ternary projection matrices. A tied head has no
/// matrix of its own: its weights come from the embedding table in the file.
std::vector<ParamSpec> unpacked_specs(const ModelConfig& config);

}  // namespace mmfree
