#pragma once
#include "train/inference/model.h"

namespace mmfree {

/// A model with random weights, for measurements: ternary matrices have codes and scales, but no latent weights, so
/// that large models fit in memory. The same configuration gives the same model.
Model random_model(const ModelConfig& config);

}  // namespace mmfree
