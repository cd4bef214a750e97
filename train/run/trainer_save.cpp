// When and how a run's checkpoints are saved while it trains.
#include <filesystem>
#include <memory>
#include <tuple>

#include "core/ranks/agreement.h"
#include "train/run/digest.h"
#include "train/run/trainer.h"

namespace mmfree {
namespace fs = std::filesystem;

/// A failed write leaves the older checkpoints as they were. Whether training continues without it is the user's
/// choice, but a run must not end as if it were saved.
void Trainer::write_failed(const Error& error) {
  const std::string which = newest().empty() ? "there is no checkpoint" : "the newest checkpoint is " + newest();
  if (ending_ || config_.train.on_save_error == OnSaveError::stop)
    throw Error(concat(error.what(), "; ", which, newest().empty() ? "" : "; continue from it with --resume"),
                error.status());
  reporter_.message(concat("warning: ", error.what(), "; ", which, "; training goes on"));
}

std::string Trainer::newest() const {
  const std::string path = saved_step_ >= 0 ? checkpoint_path(folder_.path(), saved_step_) : resumed_from_;
  std::error_code ignored;
  return fs::exists(path, ignored) ? path : "";
}

/// Not at the step where this process started: there it has made none.
bool Trainer::save_due() const {
  const int64_t every = config_.train.save_every;
  return every > 0 && state_.step > first_step_ && state_.step % every == 0;
}

/// The checkpoint of saving_step_ is saved.
void Trainer::saved() {
  saved_step_ = saving_step_;
  note_best();
}

/// The best evaluation counts for the next ones once its checkpoint is there.
void Trainer::note_best() {
  if (!best_to_be_ || best_to_be_->first != saved_step_) return;
  std::tie(state_.evaluations.best_step, state_.evaluations.best_loss) = *best_to_be_;
  best_to_be_.reset();
}

/// What stays once the checkpoint with `state` is saved.
Retention Trainer::retention(const LoopState& state) const {
  const TrainConfig& t = config_.train;
  return {t.keep_last,
          t.keep_every,
          {state_.evaluations.best_step, state.evaluations.best_step},
          t.rollback > 0 ? t.save_every : 0};
}

/// Starts to save the state, unless the newest checkpoint holds it, and this is not `again`.
void Trainer::save(bool again) {
  const Reporter::Pause not_training(reporter_);
  take(runner_->collect());
  settle_save(true);
  if (decide(group_, [&] { return !again && saved_step_ == state_.step && !newest().empty(); })) return;
  saving_step_ = state_.step;
  FlatState state = flat();
  // A run that was stopped and resumed has the same lines as one that was not: none where no checkpoint was due.
  if (save_due() || state_.step == config_.train.steps)
    reporter_.weights(state_.step, weights_digest(state.values, state.share));
  state.carried = runner_->all_carried();
  if (!leads()) {
    if (state.share.group) saving_.start(state, [this](const FlatState& mine) { send_parts(params_, mine); });
    return;
  }
  const std::string path = checkpoint_path(folder_.path(), state_.step);
  const auto collector = std::make_shared<Collector>(state.share);
  LoopState loop = state_;
  if (best_to_be_ && best_to_be_->first == loop.step)
    std::tie(loop.evaluations.best_step, loop.evaluations.best_loss) = *best_to_be_;
  const auto write = [this, path, collector, loop, keep = retention(loop)](const FlatState& mine) {
    save_checkpoint(path, config_, params_, mine, loop, tokenizer_bytes(),
                    [&](size_t i, const Tensor& piece) { return collector->parameter(params_, i, piece); });
    retain_checkpoints(config_.train.run_dir, loop.step, keep);
  };
  try {
    folder_.keep();
    folder_.restore();
    reporter_.sync();
    saving_.start(state, write);
    if (!saving_.pending()) saved();
  } catch (const Error& e) {
    write_failed(e);
  }
}

FlatState Trainer::flat() const {
  return {params_.values(), optimizer_->states(), runner_->carried(), params_.share()};
}

/// Takes note of how the save under way ended: if it has, or with `wait` in any case.
void Trainer::settle_save(bool wait) try {
  if (!saving_.pending()) return;
  if (wait) saving_.wait();
  if (wait || saving_.poll()) saved();
} catch (const LostRank&) {
  throw;
} catch (const Error& e) {
  write_failed(e);
}

}  // namespace mmfree
