#pragma once
#include <cstdint>

#include "optim/optim_config.h"

namespace mmfree {

/// Steps of linear warm-up: config.warmup_steps, or floor(steps / 50) where that is -1.
int64_t warmup_steps(const OptimConfig& config, int64_t steps);

/// Learning rate of `step` (1..steps). With W warm-up steps: lr·step/W up to step W; after that lr (constant), or with
/// p = (step - W) / (steps - W) and r = min_lr_ratio: lr·(r + (1 - r)·(1 + cos πp)/2), which is r·lr at the last step.
double learning_rate(const OptimConfig& config, int64_t step, int64_t steps);

/// Weight decay of `step` (1..steps): config.weight_decay while step <= weight_decay_until·steps, then 0.
double weight_decay(const OptimConfig& config, int64_t step, int64_t steps);

}  // namespace mmfree
