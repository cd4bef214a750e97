#include "train/run/step.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <utility>

#include "core/ops/elementwise.h"

namespace mmfree {

/// What only a GPU needs: staging of inputs, the recorded parts and results on their way.
struct StepRunner::Gpu {
  Tensor staging;  ///< [2 · rows · T] i32: tokens and targets of the step after this one
  gpu::CopyStream copies;
  BatchFeed::Slot* copying = nullptr;  ///< its copy to `staging` has been started
  std::array<std::unique_ptr<gpu::Graph>, kParts> graphs;
  gpu::Readback readback{(1 + kStepParams) * sizeof(double)};
  bool warm = false;  ///< a step has run kernel by kernel: libraries are loaded, algorithms chosen, memory obtained
  size_t live = 0;    ///< bytes of the arena in use when the parts were recorded
};

StepRunner::StepRunner(LM& lm, ParamStore& params, Optimizer& optimizer, const RunConfig& config, Recompute recompute)
    : lm_(lm),
      params_(params),
      optimizer_(optimizer),
      rows_(config.train.batch_size),
      micro_(config.train.micro_batch()),
      seq_len_(config.data.seq_len),
      steps_(config.train.steps),
      recompute_(recompute),
      record_(config.train.capture && !checking_finite()),
      ids_({rows_ * seq_len_}, DType::i32, lm.device()),
      targets_({rows_ * seq_len_}, DType::i32, lm.device()),
      micro_ids_(ids_),
      micro_targets_(targets_),
      scale_({1}, DType::f64, lm.device()),
      outcome_({1 + kStepParams}, DType::f64, lm.device()) {
  if (micro_ < rows_) {
    micro_ids_ = Tensor({micro_ * seq_len_}, DType::i32, lm.device());
    micro_targets_ = Tensor({micro_ * seq_len_}, DType::i32, lm.device());
  }
  params_.begin_gradients();
  if (lm.device() == Device::cuda && !DryRun::active()) {
    gpu_ = std::make_unique<Gpu>();
    gpu_->staging = Tensor({2 * rows_ * seq_len_}, DType::i32, Device::cuda);
  }
}

StepRunner::~StepRunner() = default;

void StepRunner::each_part(const std::function<void(Part)>& run) {
  for (int64_t row = 0; row < rows_; row += micro_) {
    if (micro_ < rows_) {
      micro_ids_.copy_from(ids_.slice(row * seq_len_, (row + micro_) * seq_len_));
      micro_targets_.copy_from(targets_.slice(row * seq_len_, (row + micro_) * seq_len_));
    }
    run(row == 0 ? Part::first : Part::later);
  }
  run(Part::update);
}

void StepRunner::work() {
  each_part([this](Part part) { compute(part); });
}

void StepRunner::compute(Part part) {
  if (part != Part::update) return compute_micro_batch(part == Part::first);
  params_.finish_gradients();
  optimizer_.update(outcome_.slice(0, 1));
  lm_.requantise(optimizer_.abs_sums());
  outcome_.slice(1, 1 + kStepParams).copy_from(optimizer_.step());
}

void StepRunner::compute_micro_batch(bool first) {
  if (first) params_.begin_gradients();
  Tensor loss = outcome_.slice(0, 1);
  Tape tape;
  const Var part = lm_.loss(micro_ids_, micro_targets_, micro_, scale_, recompute_);
  tape.backward(part);
  sum(part.value(), 1, loss, first ? 0 : 1);
}

/// Runs one part of a step: recorded, once a whole step has run without.
void StepRunner::play(Part part) {
  if (!gpu_ || !record_ || !gpu_->warm) return compute(part);
  std::unique_ptr<gpu::Graph>& graph = gpu_->graphs[size_t(part)];
  const size_t live = Arena::current(Device::cuda)->stats().live;
  if (std::none_of(gpu_->graphs.begin(), gpu_->graphs.end(), [](const auto& g) { return bool(g); })) gpu_->live = live;
  MMFREE_CHECK(Error, live == gpu_->live, "step: tensors of ", int64_t(live) - int64_t(gpu_->live),
               " bytes were made since the step was recorded and would be written over; take them from an arena of "
               "their own");
  if (!graph) graph = std::make_unique<gpu::Graph>([&] { compute(part); });
  graph->launch();
}

std::optional<StepResult> StepRunner::run(int64_t step, BatchFeed& feed) {
  const int64_t scored = load(step, feed);
  start(step, scored);
  // On a GPU the result before this one is read after the launch, so that the GPU has work meanwhile.
  std::optional<StepResult> before = collect();
  finish(step, scored);
  return gpu_ ? before : collect();
}

void StepRunner::launch(int64_t step, int64_t scored) {
  start(step, scored);
  finish(step, scored);
}

/// Fills the inputs; gives the number of scored targets.
int64_t StepRunner::load(int64_t step, BatchFeed& feed) {
  if (!gpu_) {
    BatchFeed::Slot* slot = feed.next();
    std::memcpy(ids_.raw_mut(), slot->data(), size_t(ids_.bytes()));
    std::memcpy(targets_.raw_mut(), slot->data() + ids_.size(), size_t(targets_.bytes()));
    const int64_t scored = slot->scored;
    feed.release(slot);
    return scored;
  }
  Gpu& g = *gpu_;
  const auto start_copy = [&] {
    g.copying = feed.next();
    g.copies.start(g.staging.raw_mut(), *g.copying->pinned, size_t(g.staging.bytes()));
  };
  if (!g.copying) start_copy();
  // Waiting here also keeps the host from running more than a step ahead of the GPU.
  g.copies.wait();
  const int64_t scored = g.copying->scored;
  feed.release(std::exchange(g.copying, nullptr));
  g.copies.join();
  ids_.copy_from(g.staging.slice(0, ids_.size()));
  targets_.copy_from(g.staging.slice(ids_.size(), 2 * ids_.size()));
  try {
    if (step + 1 < steps_) start_copy();
  } catch (const std::exception&) {
    // The feed throws it again when the next step asks for that batch: this step can still be made.
  }
  return scored;
}

void StepRunner::start(int64_t step, int64_t scored) {
  if (scored == 0) return;
  optimizer_.begin_step(step + 1, steps_);
  fill(scale_, 1.0 / double(scored));
  each_part([this](Part part) { play(part); });
  if (gpu_) gpu_->warm = true;
}

void StepRunner::finish(int64_t step, int64_t scored) {
  if (gpu_ && scored > 0) gpu_->readback.start(outcome_.raw(), size_t(outcome_.bytes()));
  pending_ = {step, scored};
}

std::optional<StepResult> StepRunner::collect() {
  const std::optional<Pending> pending = std::exchange(pending_, std::nullopt);
  return pending ? std::optional(result(*pending)) : std::nullopt;
}

StepResult StepRunner::result(const Pending& pending) {
  StepResult result{pending.step + 1, pending.scored, std::numeric_limits<double>::quiet_NaN(), {}};
  result.report.skipped = true;
  if (pending.scored == 0) return result;
  const double* numbers = gpu_ ? static_cast<const double*>(gpu_->readback.wait()) : outcome_.data<double>();
  std::array<double, kStepParams> params;
  std::copy_n(numbers + 1, kStepParams, params.begin());
  result.loss = numbers[0];
  result.report = Optimizer::report(std::bit_cast<StepParams>(params));
  return result;
}

}  // namespace mmfree
