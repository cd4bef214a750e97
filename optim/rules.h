#pragma once
#include "optim/optim_config.h"

namespace mmfree {

/// What holds for one parameter.
struct ParamRates {
  double lr_factor = 1;
  double weight_decay = 0;
};

/// Without rules the factor is 1, and matrices and the head decay by config.weight_decay. Of the rules that match,
/// later ones win, each key by itself.
ParamRates rates_of(const ParamSpec& spec, const OptimConfig& config);

/// The rates of each block of the flat buffers, [P / kParamBlock, 2] f64 on the parameters' device, as `adamw` takes
/// them. @throws ConfigError naming a rule that matches no parameter
Tensor block_rates(const ParamStore& params, const OptimConfig& config);

}  // namespace mmfree
