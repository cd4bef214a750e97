#pragma once
#include <cstdint>

#include "optim/optim_config.h"

namespace mmfree {

/// Steps of linear warm-up: config.warmup_steps, or floor(steps / 50) where that is -1.
int64_t warmup_steps(const OptimConfig& config, int64_t steps);

/// Learning rate of step s of S (1..S). With W warm-up steps: lr·s/W up to step W. After that, with
/// p = (s − W) / (S − W), r = min_lr_ratio and line(p) = 1 − (1 − r) p, the rate is lr times
///   constant    1
///   linear      line(p)
///   cosine      r + (1 − r)·(1 + cos πp)/2
///   wsd         1 while s <= A; then 1 − (1 − r)·(s − A)/(S − A), where A = max(W, (1 − decay_fraction)·S)
///               (warm-up, stable, decay: Hu et al. 2024, arXiv:2404.06395)
///   two_phase   line(p) while s <= B; then c + (r − c)·(s − B)/(S − B), where B = max(W, phase_fraction·S) and
///               c = phase_lr_ratio·line(p at B): the rate drops, and falls linearly from there (the BitNet b1.58
///               recipe, Ma et al. 2025, arXiv:2504.12285)
/// All but constant end at r·lr in step S, and stay there.
double learning_rate(const OptimConfig& config, int64_t step, int64_t steps);

/// Factor of all weight decays in step s of S: 1 while s <= weight_decay_until·S, in two_phase also s <=
/// phase_fraction·S; then 0.
double decay_factor(const OptimConfig& config, int64_t step, int64_t steps);

}  // namespace mmfree
