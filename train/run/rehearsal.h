#pragma once
#include <cstddef>
#include <map>
#include <string>

#include "core/op_work.h"
#include "train/config/config.h"

namespace mmfree {

/// Calls of ops, by name_of, amount and inner (see OpWork): how many.
struct OpCount {
  double amount = 0;
  int64_t inner = 0;
  OpWork::Kind kind = OpWork::passes;
  auto operator<=>(const OpCount&) const = default;
};
using StepWork = std::map<std::string, std::map<OpCount, double>>;

/// What a training step takes of one rank.
struct Rehearsal {
  size_t state = 0;  ///< bytes of device memory: parameters, gradients, moments, quantised weights
  size_t peak = 0;   ///< the most at once during a step, `state` included
  StepWork work;     ///< without copies and what ranks exchange
};

/// Where `train` would compute, on any machine: train.device=cuda needs no GPU for it.
ComputeTarget rehearsal_target(const TrainConfig& train);

/// Goes through a step of `config` without memory and without kernels, so that any machine can say what another needs.
/// The driver's context (about half a GB) and what launchers take for a while (see DryRun) come on top.
Rehearsal rehearse(const RunConfig& config, const ComputeTarget& target, Recompute recompute, int ranks = 1);

}  // namespace mmfree
