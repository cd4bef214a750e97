#pragma once
#include "optim/optim_config.h"

namespace mmfree {

/// The rates of one parameter.
struct ParamRates {
  double lr_factor = 1;
  double weight_decay = 0;
};

/// Without rules lr_factor is 1, and weight_decay is config.weight_decay for matrices and the head, else 0. A matching
/// rule replaces the keys that it has; later rules win.
ParamRates rates_of(const ParamSpec& spec, const OptimConfig& config);

/// The rates of each block of the flat buffers, [P / kParamBlock, 2] f64 on the parameters' device, as `adamw` takes
/// them. @throws ConfigError naming a rule that matches no parameter
Tensor block_rates(const ParamStore& params, const OptimConfig& config);

}  // namespace mmfree
