// Where a run begins: from nothing, from a model's weights, from a checkpoint, or again from its last good one.
#include <algorithm>
#include <filesystem>
#include <utility>

#include "core/ops/elementwise.h"
#include "core/ranks/agreement.h"
#include "core/system/files.h"
#include "optim/schedule.h"
#include "train/run/init_from.h"
#include "train/run/run_batches.h"
#include "train/run/trainer.h"

namespace mmfree {
namespace fs = std::filesystem;

/// Continues from the checkpoint that train.resume asks for. Returns whether there is one. Rank 0 finds it.
bool Trainer::resume(bool force) {
  const std::string path = group_.gather_texts(leads() ? find_and_resume(force) : "")[0];
  if (!leads() && !path.empty()) resume_from(Checkpoint(path, h5::Verify::while_reading), force);
  return !path.empty();
}

/// The path of the checkpoint, empty without one.
std::string Trainer::find_and_resume(bool force) {
  const ResumeFrom& resume = config_.train.resume;
  const bool present = !checkpoint_steps(folder_.path()).empty();
  if (resume.mode == ResumeFrom::nothing) {
    MMFREE_CHECK(ConfigError, !present, folder_.path(),
                 ": already holds checkpoints; continue with train.resume=auto, or choose another train.run_dir");
    return {};
  }
  if (resume.mode == ResumeFrom::checkpoint) {
    std::error_code error;
    MMFREE_CHECK(MissingError, fs::exists(resume.path, error), "train.resume: no checkpoint at ", quote(resume.path),
                 "; expected false, true, auto or a checkpoint's path");
    resume_from(Checkpoint(resume.path, h5::Verify::while_reading), force);
    return resume.path;
  }
  const auto warn = [&](const std::string& w) { reporter_.message("warning: " + w); };
  const auto use = [&](const Checkpoint& file) { resume_from(file, force); };
  const std::optional<Checkpoint> newest = newest_checkpoint(folder_.path(), warn, use);
  MMFREE_CHECK(MissingError, newest || (resume.mode == ResumeFrom::newest_if_any && !present), folder_.path(),
               ": train.resume=", name_of(resume), " found no intact checkpoint to continue from");
  return newest ? newest->path() : "";
}

/// Names what differs from the checkpoint's run; a change that makes it another training needs `force`.
void Trainer::check_changes(const Checkpoint& file, bool force) {
  std::string dangerous;
  std::vector<std::string> changed;
  const auto refuse = [&](const std::string& what) { dangerous += (dangerous.empty() ? "" : ", ") + what; };
  RunConfig before = file.config();
  if (before.train.leaves == 0) before.train.leaves = 1;                  // written before there were leaves
  if (!before.train.backward) before.train.backward = Products::compute;  // and before there was a choice
  for (const ConfigChange& change : compare(before, config_)) {
    if (change.key == "train.resume" ||
        (change.key == "data.framing" && change.before == name_of(std::optional<Framing>())))
      continue;
    reporter_.message(concat(change.dangerous ? "changed (dangerous): " : "changed: ", change.text()));
    changed.push_back(change.key);
    if (change.dangerous) refuse(change.key);
  }
  if (file.state().data != state_.data) {
    reporter_.message("changed (dangerous): the content of the training shards");
    refuse("the content of the training shards");
    changed.push_back("the content of the training shards");
  }
  tell_jump(file);
  tell_order(file, changed);
  MMFREE_CHECK(ConfigError, dangerous.empty() || force, file.path(),
               ": the run would not continue the same training: ", dangerous,
               " changed; undo it, start a new train.run_dir, or insist with --force");
}

/// Which data come next, where a change has to do with that.
void Trainer::tell_order(const Checkpoint& file, const std::vector<std::string>& changed) {
  static const char* const kOrder[] = {"data.seq_len",
                                       "data.shuffle",
                                       "data.carry_state",
                                       "data.sources",
                                       "data.stages",
                                       "train.seed",
                                       "the content of the training shards"};
  const auto has = [&](const char* key) { return std::find(changed.begin(), changed.end(), key) != changed.end(); };
  const std::string next = concat("step ", file.state().step + 1, " goes on with sample ",
                                  next_sample(config_, file.state()), ", as many as were trained on");
  std::string order;
  for (const char* key : kOrder)
    if (has(key)) order += (order.empty() ? "" : ", ") + std::string(key);
  if (has("train.batch_size") && config_.data.carry_state)
    order += (order.empty() ? "" : ", ") + std::string("train.batch_size");
  if (!order.empty())
    reporter_.message(concat("the order of the data is another one (", order, "): ", next,
                             "; some that were seen before come again, others are left out"));
  else if (has("train.batch_size"))
    reporter_.message(concat("train.batch_size changed: ", next, "; no data are repeated or left out"));
}

/// A changed schedule may make the learning rate jump.
void Trainer::tell_jump(const Checkpoint& file) {
  const int64_t step = file.state().step;
  const RunConfig& before = file.config();
  if (step < 1 || step >= config_.train.steps) return;
  const double planned = learning_rate(before.optim, step + 1, before.train.steps),
               last = learning_rate(before.optim, step, before.train.steps),
               next = learning_rate(config_.optim, step + 1, config_.train.steps);
  if (next == planned) return;
  reporter_.message(concat("the learning rate goes from ", last, " in step ", step, " to ", next, " in step ", step + 1,
                           step < before.train.steps ? concat("; it would have gone to ", planned) : std::string(),
                           ", because the schedule changed"));
}

void Trainer::resume_from(const Checkpoint& file, bool force) {
  const std::string& path = file.path();
  MMFREE_CHECK(DataError, file.has_states(), path,
               ": is a model without optimizer state (an import?); training cannot be resumed from it, but can start "
               "with its weights: train.init_from");
  decide_leaves(std::max<int64_t>(1, file.config().train.leaves));
  decide_backward(file.config().train.backward.value_or(Products::compute));
  resolve_lengths_after(file.state());
  check_changes(file, force);
  const int64_t step = file.state().step;
  MMFREE_CHECK(ConfigError, step <= config_.train.steps, config_.source, ": train.steps is ", config_.train.steps,
               " but ", path, " has made ", step, " steps already; raise train.steps");
  std::error_code ignored;
  const bool of_this_run = fs::equivalent(path, checkpoint_path(folder_.path(), step), ignored);
  const std::vector<int64_t> present = checkpoint_steps(folder_.path());
  const bool named = config_.train.resume.mode == ResumeFrom::checkpoint;
  MMFREE_CHECK(ConfigError, !named || present.empty() || (of_this_run && present.back() == step), folder_.path(),
               ": holds checkpoints of another run, or later checkpoints than ", path,
               ", which a later --resume would continue; remove them or choose another train.run_dir");
  const std::string data = state_.data;
  make_runner();
  file.load(params_, optimizer_.get(), runner_->carried(), runner_->first_row(), config_.train.batch_size);
  state_ = file.state();
  state_.data = data;
  if (const std::string model = file.tokenizer_model(); !model.empty())
    adopt_tokenizer(Tokenizer::from_bytes(model, path));
  if (of_this_run) saved_step_ = step;
  resumed_from_ = path;
  reporter_.message(concat("resuming from ", path, " at step ", state_.step));
}

/// The tokens of the steps that were made count, whatever their batch was.
void Trainer::resolve_lengths_after(const LoopState& made) {
  resolve_lengths(
      config_, asked_lengths_, [&](int64_t samples) { return batches_.epochs(samples); }, made.step, made.tokens);
}

void Trainer::start_afresh(std::optional<Model> source) {
  decide_leaves(group_.size());
  decide_backward(target_.prefers_int8 ? Products::int8 : Products::compute);
  make_runner();
  params_.initialise(uint64_t(config_.train.seed));
  if (config_.train.init_from.empty()) return;
  if (!source) source.emplace(load_source(config_.train));
  for (const std::string& line : init_parameters(params_, config_, *source)) reporter_.message(line);
  if (source->tokenizer && !adopt_tokenizer(*source->tokenizer))
    reporter_.message(concat("warning: the training shards were prepared with another tokenizer than that of ",
                             source->source, ": its weights know other tokens by these numbers"));
}

/// Takes `tokenizer` if the shards were prepared with it and the configuration names none. Returns whether they were.
bool Trainer::adopt_tokenizer(const Tokenizer& tokenizer) {
  const bool fits = tokenizer.hash() == inputs_.corpus.info().tokenizer_hash;
  if (fits && !inputs_.tokenizer) inputs_.tokenizer = tokenizer;
  return fits;
}

/// After a divergence: goes back to the newest good checkpoint of this run that was due, as if the data from there up
/// to the step that was given up did not exist. Returns false if train.rollback allows no more, or there is no such
/// checkpoint. Checkpoints that a signal or people asked for do not count: a run that was stopped on its way goes back
/// to the same one.
bool Trainer::roll_back() {
  if (diverged_at_ == 0 || state_.rollbacks >= config_.train.rollback) return false;
  runner_->collect();  // a step that was started behind the one that was given up
  runner_.reset();
  feed_.reset();
  make_runner();
  runner_->open_exchange();
  const std::string path = group_.gather_texts(leads() ? load_good_checkpoint(diverged_at_) : "")[0];
  if (path.empty()) return false;
  const Checkpoint file(path, h5::Verify::while_reading);
  if (!leads())
    file.load(params_, optimizer_.get(), runner_->carried(), runner_->first_row(), config_.train.batch_size);
  lm_.requantise();
  reporter_.message(concat("step ", diverged_at_, ": ", state_.skipped_in_row,
                           " steps in a row were skipped: the run diverges and goes back to ", path));
  go_on_from(file.state(), std::exchange(state_, {}));
  return true;
}

/// Loads the newest good checkpoint below step `diverged` that is intact. Returns its path, empty for none.
std::string Trainer::load_good_checkpoint(int64_t diverged) {
  for (const int64_t step : good_checkpoints(folder_.path(), config_.train.save_every, diverged)) try {
      const std::string path = checkpoint_path(folder_.path(), step);
      const Checkpoint file(path, h5::Verify::while_reading);
      file.load(params_, optimizer_.get(), runner_->carried(), runner_->first_row(), config_.train.batch_size);
      return path;
    } catch (const DamagedError& e) {
      reporter_.message(concat("warning: passing over a damaged checkpoint: ", e.what()));
    }
  return {};
}

/// Continues the run from `good`, whose parameters are loaded, after it diverged in the state `diverged`. The later
/// checkpoints and metrics go, and the checkpoint is written anew with what the run now knows. A kill at any moment
/// leaves the old checkpoint, whose run diverges and goes back in the same way, or the new one.
void Trainer::go_on_from(LoopState good, const LoopState& diverged) {
  LoopState given_up = diverged;
  given_up.tokens -= (diverged.step - diverged_at_) * config_.train.batch_size * config_.data.seq_len;
  state_ = std::move(good);
  state_.data = diverged.data;
  state_.rollbacks = diverged.rollbacks + 1;
  state_.left_out = 0;
  state_.left_out = next_sample(config_, given_up) - next_sample(config_, state_);
  // What a row carries belongs to data that do not follow any more.
  runner_->carried().for_each([](int64_t, size_t, const Tensor& t) {
    Tensor zero = t;
    fill(zero, 0);
  });
  EvaluationHistory& e = state_.evaluations;
  std::error_code ignored;
  if (leads() && e.best_step >= 0 && !fs::exists(checkpoint_path(folder_.path(), e.best_step), ignored))
    e.best_step = -1, e.best_loss = EvaluationHistory::kNone;
  best_to_be_.reset();
  first_step_ = saved_step_ = state_.step;
  reporter_.message(concat("the data of the steps from ", state_.step + 1, " to ", diverged_at_,
                           " are left out (rollback ", state_.rollbacks, " of ", config_.train.rollback, ")"));
  diverged_at_ = 0;
  ending_ = false;  // set if the batch behind the step that was given up could not be read
  if (leads()) folder_.remove_checkpoints_after(state_.step);
  reporter_.go_back(state_);
  start_watch();
  save(true);
}

}  // namespace mmfree
