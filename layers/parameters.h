#pragma once
#include <vector>

#include "autograd/parameter.h"
#include "layers/model_config.h"

namespace mmfree {

/// Every parameter of the model with the published state dict's name, its shape and its initialisation.
/// Only `down_proj` gets the 1/sqrt(2L) rescale: in the published code it never reaches o_proj.
std::vector<ParamSpec> parameter_specs(const ModelConfig& config);

/// The parameters that an exported model keeps as they are: all but the ternary projection matrices.
std::vector<ParamSpec> unpacked_specs(const ModelConfig& config);

/// The projection matrices in state-dict order, as (name without ".weight", precision).
std::vector<std::pair<std::string, Precision>> projections(const ModelConfig& config);

}  // namespace mmfree
