#include "train/run/step.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <numeric>
#include <span>
#include <utility>

#include "core/op_watch.h"
#include "core/ops/elementwise.h"
#include "core/ranks/agreement.h"

namespace mmfree {

/// What only a GPU needs: staging of inputs, the recorded parts and results on their way.
struct StepRunner::Gpu {
  Tensor staging;  ///< i32: tokens, targets and perhaps starts of the step after this one, as in a slot of the feed
  gpu::CopyStream copies;
  BatchFeed::Slot* copying = nullptr;  ///< its copy to `staging` has been started
  struct Recorded {
    std::unique_ptr<gpu::Graph> graph;
    uint64_t sent = 0;  ///< bytes that a launch of it sends to other ranks
  };
  std::array<Recorded, kParts> recorded;
  gpu::Readback readback{(1 + kStepParams) * sizeof(double)};
  bool warm = false;  ///< a step has run kernel by kernel: libraries are loaded, algorithms chosen, memory obtained
  size_t live = 0;    ///< bytes of the arena in use when the parts were recorded
};

StepRunner::StepRunner(LM& lm, ParamStore& params, Optimizer& optimizer, const RunConfig& config, Recompute recompute,
                       Group& group)
    : lm_(lm),
      params_(params),
      optimizer_(optimizer),
      group_(group),
      rows_(config.train.batch_size / group.size()),
      leaf_rows_(config.train.leaf_rows()),
      micro_(config.train.micro_batch()),
      seq_len_(config.data.seq_len),
      steps_(config.train.steps),
      recompute_(recompute),
      keep_blocks_(config.train.keep_blocks),
      record_(config.train.capture && !checking_finite()),
      ids_({rows_ * seq_len_}, DType::i32, lm.device()),
      targets_({rows_ * seq_len_}, DType::i32, lm.device()),
      starts_(config.data.reset_state || config.data.carry_state ? Tensor::zeros(ids_.shape(), DType::u8, lm.device())
                                                                 : Tensor()),
      micro_ids_(ids_),
      micro_targets_(targets_),
      micro_starts_(starts_),
      carried_(config.data.carry_state ? lm.zero_state(rows_) : DecodeState()),
      micro_carried_(carried_),
      scale_({1}, DType::f64, lm.device()),
      outcome_({1 + kStepParams}, DType::f64, lm.device()),
      losses_(group.zeros({config.train.batch_size / leaf_rows_}, DType::f64, lm.device())),
      beside_(group.size() > 1 && lm.device() == Device::cuda && !DryRun::active()) {
  if (micro_ < rows_) {
    micro_ids_ = Tensor({micro_ * seq_len_}, DType::i32, lm.device());
    micro_targets_ = Tensor({micro_ * seq_len_}, DType::i32, lm.device());
    if (starts_.defined()) micro_starts_ = Tensor({micro_ * seq_len_}, DType::u8, lm.device());
    if (!carried_.empty()) micro_carried_ = lm.zero_state(micro_);
  }
  // A leaf of several micro-batches, or several leaves, need all gradients at a time.
  if (config.train.shard == Shard::gradients && group.size() > 1 && micro_ == rows_ && leaf_rows_ == rows_)
    params_.divide_gradients();
  {
    // Others read whole gradients; pieces differ in size, and ranks take the same from that arena.
    const ArenaScope scope(params_.divides_gradients() ? Arena::current(lm.device())
                                                       : group.exchange_arena(lm.device()));
    params_.begin_gradients();
  }
  if (group.size() > 1) exchange_.emplace(params, optimizer, group);
  optimizer_.skip_outliers(config.train.skip_outliers);
  if (rows_ > leaf_rows_) sums_.emplace(rows_ / leaf_rows_, params_.grads());
  if (lm.device() == Device::cuda && !DryRun::active()) {
    gpu_ = std::make_unique<Gpu>();
    gpu_->staging =
        Tensor({2 * ids_.size() + (starts_.defined() ? (starts_.bytes() + 3) / 4 : 0)}, DType::i32, Device::cuda);
  }
}

StepRunner::~StepRunner() = default;

void StepRunner::open_exchange() {
  if (exchange_) exchange_->open(leaf_rows_ == rows_);
}

void StepRunner::each_part(const std::function<void(Part)>& run) {
  for (int64_t row = 0; row < rows_; row += micro_) {
    take_rows(row);
    run(part_of(row));
    return_state(row);
    if ((row + micro_) % leaf_rows_ == 0) end_leaf(row / leaf_rows_);
  }
  run(Part::update);
}

/// What the micro-batch of rows from `row` on is.
StepRunner::Part StepRunner::part_of(int64_t row) const {
  const bool first = row % leaf_rows_ == 0, last = row + micro_ == rows_;
  if (!last || !learns_ || !exchange_ || !exchange_->reached()) return first ? Part::first : Part::later;
  return first ? Part::only : Part::last;
}

/// Copies rows [row, row + micro) to the place of the micro-batch at work, unless that is their own.
void StepRunner::take_rows(int64_t row) {
  if (micro_ == rows_) return;
  const auto take = [&](const Tensor& from, Tensor to, int64_t per_row) {
    if (from.defined()) to.copy_from(from.slice(row * per_row, (row + micro_) * per_row));
  };
  take(ids_, micro_ids_, seq_len_);
  take(targets_, micro_targets_, seq_len_);
  take(starts_, micro_starts_, seq_len_);
  micro_carried_.for_each([&](int64_t l, size_t i, const Tensor& to) { take(carried_.layer(l).at(i), to, 1); });
}

void StepRunner::return_state(int64_t row) {
  if (micro_ == rows_) return;
  micro_carried_.for_each([&](int64_t l, size_t i, const Tensor& from) {
    carried_.layer(l).at(i).slice(row, row + micro_).copy_from(from);
  });
}

DecodeState StepRunner::all_carried() const {
  if (group_.size() == 1) return carried_;
  DecodeState all = carried_;
  carried_.for_each([&](int64_t l, size_t i, const Tensor& t) {
    const Tensor mine = t.to(Device::cpu);
    std::vector<int64_t> dims = {group_.size() * rows_};
    for (int d = 1; d < mine.shape().rank(); ++d) dims.push_back(mine.dim(d));
    Tensor rows(Shape(std::span<const int64_t>(dims)), mine.dtype());
    group_.all_gather(mine.raw(), size_t(mine.bytes()), rows.raw_mut());
    all.layer(l).at(i) = rows;
  });
  return all;
}

/// Where the gradients go depends on the leaf, so this is part of no graph.
void StepRunner::end_leaf(int64_t leaf) {
  if (losses_.size() == 1) return;
  const int64_t number = group_.rank() * (rows_ / leaf_rows_) + leaf;
  losses_.slice(number, number + 1).copy_from(outcome_.slice(0, 1));
  if (!sums_) return;
  params_.finish_gradients();
  sums_->add(leaf, params_.grads());
}

void StepRunner::work() {
  each_part([this](Part part) { compute(part); });
}

void StepRunner::rehearse(const std::function<void(int64_t)>& next) {
  const int64_t leaves = rows_ / leaf_rows_;
  const int64_t parts = rows_ / micro_;
  for (const auto& [part, times] : {std::pair(Part::first, leaves), std::pair(Part::later, parts - leaves)}) {
    if (times == 0) continue;
    next(times);
    take_rows(0);
    compute(part);
    return_state(0);
  }
  next(1);
  for (int64_t leaf = 0; leaf < leaves; ++leaf) end_leaf(leaf);
  compute(Part::update);
}

void StepRunner::compute(Part part) {
  if (part != Part::update) return compute_micro_batch(part);
  Tensor loss = outcome_.slice(0, 1);
  params_.finish_gradients();
  if (exchange_) exchange_->finish();
  if (losses_.size() > 1) {
    group_.all_gather(losses_, even_bounds(losses_.size(), group_.size()));
    sum(losses_, 1, loss);
  }
  if (exchange_) {
    exchange_->settle();
    exchange_->share();
  }
  update();
  outcome_.slice(1, 1 + kStepParams).copy_from(optimizer_.step());
}

/// Updates the parameters and what forward passes read of them. Of a divided store part by part: while one is updated,
/// the one before it is quantised and sent.
void StepRunner::update() {
  const Tensor loss = outcome_.slice(0, 1);
  if (!params_.share().group) {
    optimizer_.update(loss);
    return lm_.requantise(optimizer_.abs_sums());
  }
  optimizer_.update(loss, [&](size_t part) {
    beside_.run([&] {
      std::vector<Group::Gather> gathers = lm_.offer_codes(part, optimizer_.abs_sums());
      gathers.push_back(params_.offer_values(part));
      {
        const WatchedRange watched("gather parameters");
        group_.all_gather(gathers);
      }
      lm_.take_codes(part);
    });
  });
  beside_.join_all();
  lm_.round_others();
}

void StepRunner::compute_micro_batch(Part part) {
  const bool first = part == Part::first || part == Part::only, last = part == Part::last || part == Part::only;
  if (first) params_.begin_gradients();
  Tensor loss = outcome_.slice(0, 1);
  Tape tape;
  DecodeState state = micro_carried_;  // the same tensors until the forward pass puts new ones in their place
  const Sequences sequences(micro_, micro_starts_, state.empty() ? nullptr : &state);
  const Var share = [&] {
    const WatchedRange forward("forward");
    return lm_.loss(micro_ids_, micro_targets_, sequences, scale_, recompute_, keep_blocks_,
                    last ? exchange_->reached() : nullptr);
  }();
  {
    const WatchedRange backward("backward");
    tape.backward(share);
  }
  if (last) exchange_->join();
  if (params_.divides_gradients()) exchange_->add(params_.take_gradients());
  sum(share.value(), 1, loss, first ? 0 : 1);
  state.for_each([&](int64_t l, size_t i, const Tensor& from) { micro_carried_.layer(l).at(i).copy_from(from); });
}

/// Runs one part of a step: recorded, once a whole step has run without, unless someone watches its ops.
void StepRunner::play(Part part) {
  constexpr const char* kNames[kParts] = {"first micro-batch", "later micro-batch", "last micro-batch",
                                          "only micro-batch", "update"};
  const WatchedRange range(kNames[size_t(part)]);
  if (!gpu_ || !record_ || !gpu_->warm || op_watch) return compute(part);
  auto& [graph, sent] = gpu_->recorded[size_t(part)];
  const size_t live = Arena::current(Device::cuda)->stats().live;
  if (std::none_of(gpu_->recorded.begin(), gpu_->recorded.end(), [](const auto& r) { return bool(r.graph); }))
    gpu_->live = live;
  MMFREE_CHECK(Error, live == gpu_->live, "step: tensors of ", int64_t(live) - int64_t(gpu_->live),
               " bytes were made since the step was recorded and would be written over; take them from an arena of "
               "their own");
  if (graph) {
    sent_ += sent;
  } else {
    const uint64_t before = group_.traffic().of_gpu;
    graph = std::make_unique<gpu::Graph>([&] { compute(part); });
    sent = group_.traffic().of_gpu - before;
  }
  graph->launch();
}

std::optional<StepResult> StepRunner::run(int64_t step, BatchFeed& feed) {
  const int64_t scored = load(step, feed);
  std::optional<StepResult> before;
  // On a GPU the result before this one is read once the first part is launched: the GPU has work meanwhile, and the
  // host knows of the step before when it ends. The launches of many parts would wait for most of this step.
  start(step, scored, [&] {
    if (!before) before = collect();
  });
  if (!before) before = collect();
  finish(step, scored);
  return gpu_ ? before : collect();
}

void StepRunner::launch(int64_t step, int64_t scored) {
  start(step, scored, [] {});
  finish(step, scored);
}

/// Fills the inputs; gives the number of scored targets over all ranks.
int64_t StepRunner::load(int64_t step, BatchFeed& feed) {
  const std::vector<int64_t> scored = agree(group_, [&] { return fill_inputs(step, feed); });
  return std::accumulate(scored.begin(), scored.end(), int64_t{0});
}

int64_t StepRunner::fill_inputs(int64_t step, BatchFeed& feed) {
  if (!gpu_) {
    BatchFeed::Slot* slot = feed.next();
    std::memcpy(ids_.raw_mut(), slot->data(), size_t(ids_.bytes()));
    std::memcpy(targets_.raw_mut(), slot->targets(), size_t(targets_.bytes()));
    if (starts_.defined()) std::memcpy(starts_.raw_mut(), slot->starts(), size_t(starts_.bytes()));
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
  if (starts_.defined())
    copy_bytes(starts_.raw_mut(), Device::cuda, g.staging.raw() + 2 * ids_.bytes(), Device::cuda,
               size_t(starts_.bytes()));
  try {
    if (step + 1 < steps_) start_copy();
  } catch (const std::exception&) {
    // The feed throws it again when the next step asks for that batch: this step can still be made.
  }
  return scored;
}

/// Calls `after_part` behind the launch of each part.
void StepRunner::start(int64_t step, int64_t scored, const std::function<void()>& after_part) {
  const bool learns = learns_ = scored > 0;
  if (!learns && carried_.empty()) return;
  if (learns) optimizer_.begin_step(step + 1, steps_);
  fill(scale_, learns ? 1.0 / double(scored) : 0);
  each_part([&](Part part) {
    if (learns || part != Part::update) play(part);
    after_part();
  });
  if (gpu_ && learns) gpu_->warm = true;
}

void StepRunner::finish(int64_t step, int64_t scored) {
  if (gpu_ && scored > 0) gpu_->readback.start(outcome_.raw(), size_t(outcome_.bytes()));
  pending_ = {step, scored, std::exchange(sent_, 0)};
}

std::optional<StepResult> StepRunner::collect() {
  const std::optional<Pending> pending = std::exchange(pending_, std::nullopt);
  return pending ? std::optional(result(*pending)) : std::nullopt;
}

StepResult StepRunner::result(const Pending& pending) {
  group_.count_sent(pending.sent);
  StepResult result{pending.step + 1, pending.scored, std::numeric_limits<double>::quiet_NaN(), {}};
  result.report.skipped = true;
  if (pending.scored == 0) return result;
  const auto wait = [&] { return gpu_->readback.wait([&] { group_.check(); }); };
  const double* numbers = gpu_ ? static_cast<const double*>(wait()) : outcome_.data<double>();
  std::array<double, kStepParams> params;
  std::copy_n(numbers + 1, kStepParams, params.begin());
  result.loss = numbers[0];
  result.report = Optimizer::report(std::bit_cast<StepParams>(params));
  return result;
}

}  // namespace mmfree
