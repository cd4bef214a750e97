#include "train/run/step.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "core/ops/elementwise.h"

namespace mmfree {

/// What only a GPU needs: staging of inputs, the recorded step and results on their way.
struct StepRunner::Gpu {
  Tensor staging;  ///< [2 · rows · T] i32: tokens and targets of the step after this one
  gpu::CopyStream copies;
  BatchFeed::Slot* copying = nullptr;  ///< its copy to `staging` has been started
  std::unique_ptr<gpu::Graph> graph;
  gpu::Readback readback{(1 + kStepParams) * sizeof(double)};
  bool warm = false;  ///< a step has run kernel by kernel: libraries are loaded, algorithms chosen, memory obtained
  size_t live = 0;    ///< bytes of the arena in use when the step was recorded
};

StepRunner::StepRunner(LM& lm, ParamStore& params, AdamW& optimizer, const RunConfig& config, Recompute recompute)
    : lm_(lm),
      params_(params),
      optimizer_(optimizer),
      rows_(config.train.batch_size),
      micro_(config.train.micro_batch()),
      seq_len_(config.data.seq_len),
      steps_(config.train.steps),
      recompute_(recompute),
      record_(config.train.capture && !std::getenv("MMFREE_CHECK_FINITE")),
      ids_({rows_ * seq_len_}, DType::i32, lm.device()),
      targets_({rows_ * seq_len_}, DType::i32, lm.device()),
      outcome_({1 + kStepParams}, DType::f64, lm.device()) {
  params_.begin_gradients();
  if (lm.device() == Device::cuda && !DryRun::active()) {
    gpu_ = std::make_unique<Gpu>();
    gpu_->staging = Tensor({2 * rows_ * seq_len_}, DType::i32, Device::cuda);
  }
}

StepRunner::~StepRunner() = default;

void StepRunner::work() {
  const double scale = 1.0 / double(rows_ * seq_len_);
  Tensor loss = outcome_.slice(0, 1), params = outcome_.slice(1, 1 + kStepParams);
  params_.begin_gradients();
  for (int64_t row = 0; row < rows_; row += micro_) {
    const int64_t begin = row * seq_len_, end = (row + micro_) * seq_len_;
    Tape tape;
    const Var part = lm_.loss(ids_.slice(begin, end), targets_.slice(begin, end), micro_, scale, recompute_);
    tape.backward(part);
    sum(part.value(), 1, loss, row ? 1 : 0);
  }
  params_.finish_gradients();
  optimizer_.update(loss);
  lm_.requantise(optimizer_.abs_sums());
  params.copy_from(optimizer_.step());
}

StepResult StepRunner::result(int64_t step, const double* numbers) const {
  StepParams params;
  std::copy_n(numbers + 1, kStepParams, reinterpret_cast<double*>(&params));
  return {step + 1, numbers[0], AdamW::report(params)};
}

std::optional<StepResult> StepRunner::run(int64_t step, BatchFeed& feed) {
  load(step, feed);
  if (gpu_) {
    // The result before this one is read after the launch, so that the GPU has work meanwhile.
    const std::optional<int64_t> before = std::exchange(pending_, std::nullopt);
    start(step);
    std::optional<StepResult> finished;
    if (before) finished = result(*before, static_cast<const double*>(gpu_->readback.wait()));
    finish(step);
    return finished;
  }
  launch(step);
  return collect();
}

void StepRunner::launch(int64_t step) {
  start(step);
  finish(step);
}

void StepRunner::load(int64_t step, BatchFeed& feed) {
  if (!gpu_) {
    BatchFeed::Slot* slot = feed.next();
    std::memcpy(ids_.raw_mut(), slot->data(), size_t(ids_.bytes()));
    std::memcpy(targets_.raw_mut(), slot->data() + ids_.size(), size_t(targets_.bytes()));
    return feed.release(slot);
  }
  Gpu& g = *gpu_;
  const auto start_copy = [&] {
    g.copying = feed.next();
    g.copies.start(g.staging.raw_mut(), *g.copying->pinned, size_t(g.staging.bytes()));
  };
  if (!g.copying) start_copy();
  // Waiting here also keeps the host from running more than a step ahead of the GPU.
  g.copies.wait();
  feed.release(g.copying);
  g.copying = nullptr;
  g.copies.join();
  ids_.copy_from(g.staging.slice(0, ids_.size()));
  targets_.copy_from(g.staging.slice(ids_.size(), 2 * ids_.size()));
  if (step + 1 < steps_) start_copy();
}

void StepRunner::start(int64_t step) {
  optimizer_.begin_step(step + 1, steps_);
  if (!gpu_) return work();
  Gpu& g = *gpu_;
  Arena& arena = *Arena::current(Device::cuda);
  if (record_ && !g.graph && g.warm) {
    g.live = arena.stats().live;
    g.graph = std::make_unique<gpu::Graph>([this] { work(); });
  }
  if (g.graph) {
    MMFREE_CHECK(Error, arena.stats().live == g.live, "step: tensors of ",
                 int64_t(arena.stats().live) - int64_t(g.live),
                 " bytes were made since the step was recorded and would be written over; take them from an arena of "
                 "their own");
    return g.graph->launch();
  }
  work();
  g.warm = true;
}

void StepRunner::finish(int64_t step) {
  if (gpu_) gpu_->readback.start(outcome_.raw(), size_t(outcome_.bytes()));
  pending_ = step;
}

std::optional<StepResult> StepRunner::collect() {
  const std::optional<int64_t> step = std::exchange(pending_, std::nullopt);
  if (!step) return std::nullopt;
  if (gpu_) return result(*step, static_cast<const double*>(gpu_->readback.wait()));
  return StepResult{*step + 1, *outcome_.data<double>(), optimizer_.report()};
}

}  // namespace mmfree
