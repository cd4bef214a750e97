#pragma once
#include <array>
#include <cstdint>

namespace mmfree {

/// Shape of the learning rate after warm-up.
enum class Schedule { cosine, constant };

const char* name_of(Schedule s);

/// AdamW and its schedule (section `optim`). The MatMul-free paper publishes only part of these values: the defaults
/// are mmfree's choice.
struct OptimConfig {
  double lr = 4e-3;                        ///< peak learning rate
  std::array<double, 2> betas{0.9, 0.95};  ///< decay of the first and the second moment
  double eps = 1e-8;                       ///< added to the root of the second moment
  double weight_decay = 0.1;               ///< decoupled; per step a matrix loses lr·weight_decay of itself
  double weight_decay_until = 0.5;         ///< fraction of the steps after which decay is 0; 1: never
  double clip_grad = 1.0;                  ///< largest L2 norm of all gradients together; 0: no clipping
  Schedule schedule = Schedule::cosine;    ///< shape after warm-up
  int64_t warmup_steps = -1;               ///< steps of linear warm-up; -1: 2 % of the steps
  double min_lr_ratio = 0.1;               ///< cosine ends at min_lr_ratio·lr in the last step
};

}  // namespace mmfree
