#include "optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace mmfree {
namespace {

/// Position of `at` between `begin` and `end`, as a fraction 0..1.
double share(double at, double begin, double end) {
  return at >= end ? 1 : std::max(0.0, (at - begin) / (end - begin));
}

}  // namespace

int64_t warmup_steps(const OptimConfig& config, int64_t steps) {
  return config.warmup_steps >= 0 ? config.warmup_steps : steps / 50;
}

double learning_rate(const OptimConfig& config, int64_t step, int64_t steps) {
  const double s = double(step), all = double(steps), warmup = double(warmup_steps(config, steps));
  if (s <= warmup) return config.lr * s / warmup;
  const double least = config.min_lr_ratio;
  const auto line = [&](double at) { return 1 - (1 - least) * share(at, warmup, all); };
  switch (config.schedule) {
    case Schedule::constant:
      return config.lr;
    case Schedule::linear:
      return config.lr * line(s);
    case Schedule::cosine: {
      const double cosine = 0.5 * (1.0 + std::cos(std::numbers::pi * share(s, warmup, all)));
      return config.lr * (least + (1.0 - least) * cosine);
    }
    case Schedule::wsd: {
      const double stable = std::max(warmup, (1 - config.decay_fraction) * all);
      return config.lr * (1 - (1 - least) * share(s, stable, all));
    }
    case Schedule::two_phase: {
      const double phase = std::max(warmup, config.phase_fraction * all);
      if (s <= phase) return config.lr * line(s);
      const double begin = config.phase_lr_ratio * line(phase);
      return config.lr * (begin + (least - begin) * share(s, phase, all));
    }
  }
  throw Error("optim: unknown schedule");
}

double decay_factor(const OptimConfig& config, int64_t step, int64_t steps) {
  double until = config.weight_decay_until;
  if (config.schedule == Schedule::two_phase) until = std::min(until, config.phase_fraction);
  return double(step) <= until * double(steps) ? 1 : 0;
}

}  // namespace mmfree
