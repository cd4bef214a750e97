#include "optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace mmfree {

int64_t warmup_steps(const OptimConfig& config, int64_t steps) {
  return config.warmup_steps >= 0 ? config.warmup_steps : steps / 50;
}

double learning_rate(const OptimConfig& config, int64_t step, int64_t steps) {
  const int64_t warmup = warmup_steps(config, steps);
  if (step <= warmup) return config.lr * static_cast<double>(step) / static_cast<double>(warmup);
  if (config.schedule == Schedule::constant) return config.lr;
  const double done = std::min(1.0, static_cast<double>(step - warmup) / static_cast<double>(steps - warmup));
  const double cosine = 0.5 * (1.0 + std::cos(std::numbers::pi * done));
  return config.lr * (config.min_lr_ratio + (1.0 - config.min_lr_ratio) * cosine);
}

double weight_decay(const OptimConfig& config, int64_t step, int64_t steps) {
  const double last = config.weight_decay_until * static_cast<double>(steps);
  return static_cast<double>(step) <= last ? config.weight_decay : 0.0;
}

}  // namespace mmfree
