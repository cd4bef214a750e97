#include "train/run/memory_estimate.h"

#include "core/arena.h"
#include "layers/parameters.h"
#include "train/run/shards.h"
#include "train/run/step.h"
#include "train/run/telemetry.h"

namespace mmfree {

MemoryEstimate estimate_memory(const RunConfig& config, DType compute, Recompute recompute, int ranks) {
  const std::unique_ptr<Group> group = ranks > 1 ? Group::pretended(ranks) : Group::alone();
  const DryRun dry;
  const auto arena = Arena::counted();
  const ArenaScope scope(arena);
  ParamStore params(parameter_specs(config.model), DType::f32, Device::cuda,
                    divide(config.model, *group, config.train.shard));
  LM lm(params, config.model, compute, {config.train.backward, Products::compute});
  const auto optimizer = make_optimizer(params, config.optim);
  const Telemetry telemetry(lm, params, *optimizer, config, *group);
  StepRunner runner(lm, params, *optimizer, config, recompute, *group);
  MemoryEstimate estimate;
  estimate.state = arena->stats().live;
  runner.work();
  estimate.peak = arena->stats().peak;
  return estimate;
}

}  // namespace mmfree
