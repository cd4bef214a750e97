#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "autograd/parameter.h"

namespace mmfree {

enum class OptimizerKind { adamw };

/// Shape of the learning rate after warm-up: see learning_rate.
enum class Schedule { constant, linear, cosine, wsd, two_phase };

const char* name_of(OptimizerKind k);
const char* name_of(Schedule s);

/// Other rates for some parameters: those with a role in `roles` and a name that matches one of `parameters`.
struct OptimRule {
  std::vector<ParamRole> roles;         ///< empty: all
  std::vector<std::string> parameters;  ///< globs of whole names, or ends of names after a dot; empty: all
  std::optional<double> lr_factor;      ///< factor of the learning rate
  std::optional<double> weight_decay;   ///< in place of OptimConfig::weight_decay
};

/// The optimizer and its schedule (section `optim`). The MatMul-free paper publishes only part of these values: the
/// defaults are mmfree's choice.
struct OptimConfig {
  OptimizerKind name = OptimizerKind::adamw;
  double lr = 4e-3;                        ///< peak learning rate
  std::array<double, 2> betas{0.9, 0.95};  ///< decay of the first and the second moment
  double eps = 1e-8;                       ///< added to the root of the second moment
  double weight_decay = 0.1;               ///< decoupled, of matrices and head: p -= lr·weight_decay·p in each step
  double weight_decay_until = 0.5;         ///< fraction of the steps after which decay is 0; 1: never
  double clip_grad = 1.0;                  ///< largest L2 norm of all gradients together; 0: no clipping
  Schedule schedule = Schedule::cosine;    ///< shape after warm-up
  int64_t warmup_steps = -1;               ///< steps of linear warm-up; -1: 2 % of the steps
  double min_lr_ratio = 0;                 ///< the last step's rate is min_lr_ratio·lr, unless it is constant
  double decay_fraction = 0.2;             ///< wsd: fraction of the steps in which the rate falls
  double phase_fraction = 0.5;             ///< two_phase: fraction of the steps that the first phase takes
  double phase_lr_ratio = 2.0 / 3;         ///< two_phase: factor of the rate where the second phase begins
  std::vector<OptimRule> rules;            ///< later rules win
  int64_t warmup_tokens = 0;               ///< length of the warm-up in tokens; 0: warmup_steps gives it
};

}  // namespace mmfree
