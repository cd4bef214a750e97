#include "train/run/rehearsal.h"

#include "core/arena.h"
#include "layers/parameters.h"
#include "train/run/shards.h"
#include "train/run/step.h"
#include "train/run/telemetry.h"

namespace mmfree {
namespace {

/// Counts the ops that it sees, each `times` times.
struct Counter : OpWatch {
  StepWork& work;
  int64_t times = 0;
  explicit Counter(StepWork& work) : work(work) { op_watch = this; }
  ~Counter() override { op_watch = nullptr; }
  void ran(const OpCall& call) override {
    const OpWork one = work_of(call);
    work[name_of(call, one)][{one.amount(), one.inner, one.kind}] += double(times);
  }
};

}  // namespace

ComputeTarget rehearsal_target(const TrainConfig& train) {
  if (!train.device.wants_gpu()) return choose_target({DeviceChoice::cpu}, train.compute, "train.device");
  const DType compute = train.compute == ComputeChoice::f32 ? DType::f32 : DType::bf16;
  return {Device::cuda, compute, Products::compute, name_of(train.device), compute == DType::bf16};
}

Rehearsal rehearse(const RunConfig& config, const ComputeTarget& target, Recompute recompute, int ranks) {
  const std::unique_ptr<Group> group = ranks > 1 ? Group::pretended(ranks) : Group::alone();
  const DryRun dry(target.device);
  const auto arena = Arena::counted(target.device);
  const ArenaScope scope(arena);
  ParamStore params(parameter_specs(config.model), DType::f32, target.device,
                    divide(config.model, *group, config.train.shard));
  LM lm(params, config.model, target.compute, backward_products(target, config.train.backward));
  const auto optimizer = make_optimizer(params, config.optim);
  const Telemetry telemetry(lm, params, *optimizer, config, *group);
  StepRunner runner(lm, params, *optimizer, config, recompute, *group);
  Rehearsal result;
  result.state = arena->stats().live;
  runner.open_exchange();
  Counter counter(result.work);
  runner.rehearse([&](int64_t times) { counter.times = times; });
  result.peak = arena->stats().peak;
  return result;
}

}  // namespace mmfree
