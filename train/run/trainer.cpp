#include "train/run/trainer.h"

#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <utility>

#include "core/gpu.h"
#include "core/ranks/agreement.h"
#include "core/system/folder_mark.h"
#include "layers/parameters.h"
#include "train/run/init_from.h"
#include "train/run/recompute.h"
#include "train/run/run_batches.h"

namespace mmfree {
namespace fs = std::filesystem;
namespace {

/// Turns the lengths of `config` into steps. Returns what was asked for.
Lengths take_lengths(RunConfig& config, const Batches& batches) {
  const Lengths asked = lengths_of(config);
  resolve_lengths(config, asked, [&](int64_t samples) { return batches.epochs(samples); });
  config.train.tokens = 0, config.train.epochs = 0, config.optim.warmup_tokens = 0;
  return asked;
}

/// Bits of Trainer::wishes.
constexpr int64_t kSignal = 0xFF, kTimeIsUp = 1 << 8, kStopFile = 1 << 9, kSaveFile = 1 << 10;

/// The processor's name, as Linux tells it.
std::string cpu_model() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);)
    if (line.starts_with("model name")) return line;
  return {};
}

}  // namespace

Trainer::Trainer(RunConfig config, bool quiet, bool force, std::optional<Model> source, Group& group)
    : group_(group),
      config_(std::move(config)),
      asked_leaves_(config_.train.leaves),
      asked_backward_(config_.train.backward),
      target_(choose_target(config_, group)),
      inputs_(config_),
      batches_(inputs_.corpus, batch_options(config_)),
      asked_lengths_(take_lengths(config_, batches_)),
      params_(parameter_specs(config_.model), DType::f32, target_.device,
              divide(config_.model, group_, config_.train.shard)),
      lm_(params_, config_.model, target_.compute, backward_products(target_, config_.train.backward)),
      optimizer_(make_optimizer(params_, config_.optim)),
      folder_(config_.train.run_dir, leads()),
      reporter_(config_, target_, batches_, quiet, group) {
  const auto threads = config_.train.threads > 0 ? int(config_.train.threads) : group_.threads();
  if (threads > 0) omp_set_num_threads(threads);
  state_.data = inputs_.corpus.fingerprint();
  warn_of_bare_shards();
  adopt_framing();
  require_equal_ranks();
  if (!resume(force)) start_afresh(std::move(source));
  runner_->open_exchange();
  first_step_ = state_.step;
  lm_.requantise();
  open_run_folder();
}

/// Equal bits come from equal programs on equal devices that read the same.
void Trainer::require_equal_ranks() {
  if (group_.size() == 1) return;
  group_.require_same("programs", hash_of_file("/proc/self/exe"));
  group_.require_same("configurations", to_yaml(config_));
  group_.require_same("training data", state_.data);
  group_.require_same("devices", target_.device == Device::cuda ? gpu::info().name : cpu_model());
}

/// Fixes train.leaves, which the configuration may leave open.
void Trainer::decide_leaves(int64_t otherwise) {
  TrainConfig& t = config_.train;
  t.leaves = asked_leaves_ > 0 ? asked_leaves_ : otherwise;
  MMFREE_CHECK(ConfigError, t.splits_into(t.leaves), config_.source, ": train.batch_size is ", t.batch_size,
               ", which does not divide into ", t.leaves,
               " leaves, one per rank; start a power of two of ranks, or set ", "train.leaves");
  MMFREE_CHECK(ConfigError, t.leaves % group_.size() == 0, config_.source, ": the ", t.leaves,
               " leaves of a batch cannot be shared by ", group_.size(), " ranks; start as many as divide ", t.leaves);
  MMFREE_CHECK(ConfigError, t.leaf_rows() % t.micro_batch() == 0, config_.source, ": train.micro_batch_size is ",
               t.micro_batch_size, ", which does not divide the ", t.leaf_rows(), " sequences of each of ", t.leaves,
               " leaves");
}

/// Gradients that are rounded in another way teach something else: what a run began with it keeps.
void Trainer::decide_backward(Products otherwise) {
  config_.train.backward = asked_backward_.value_or(otherwise);
  lm_.set_backward(backward_products(target_, config_.train.backward));
}

void Trainer::make_runner() {
  watch_.reset();
  watch_ = std::make_unique<ModelWatch>(lm_, params_, *optimizer_, config_, group_, reporter_);
  runner_ =
      std::make_unique<StepRunner>(lm_, params_, *optimizer_, config_, recompute_of(config_, target_.device), group_);
}

void Trainer::warn_of_bare_shards() {
  std::vector<std::string> bare;
  const auto add = [&](const TokenShards& shards) {
    bare.insert(bare.end(), shards.without_sums().begin(), shards.without_sums().end());
  };
  for (const TokenShards& source : inputs_.corpus.sources()) add(source);
  if (inputs_.valid) add(*inputs_.valid);
  if (!bare.empty())
    reporter_.message(
        concat("warning: ", bare.size(), " token shards have no checksums of their chunks, so damage may ",
               "pass for tokens; add them with: mmfree info --verify ", fs::path(bare[0]).parent_path().string()));
}

/// What the shards say of their documents belongs to the model, whatever the configuration says.
void Trainer::adopt_framing() {
  const ShardInfo& info = inputs_.corpus.info();
  config_.data.framing = info.framing;
  const auto adopt = [&](const char* key, int64_t& id, int of_shards) {
    if (id != of_shards)
      reporter_.message(concat("warning: ", key, " is ", id, ", but the tokenizer of the training shards has ",
                               of_shards, of_shards < 0 ? " (none)" : "", ", which is used"));
    id = of_shards;
  };
  adopt("model.bos_token_id", config_.model.bos_token_id, info.bos_id);
  adopt("model.eos_token_id", config_.model.eos_token_id, info.eos_id);
}

void Trainer::open_run_folder() {
  if (!leads()) {
    reporter_.open_metrics("", saved_step_);
    return start_watch();
  }
  const RunFacts facts{first_step_, target_, inputs_.corpus.total_tokens(), state_.data,
                       inputs_.corpus.info().tokenizer_hash};
  std::vector<std::string> growing = {"metrics.jsonl"};
  if (config_.train.sample_every > 0) growing.push_back("samples.jsonl");
  for (const std::string& name : folder_.open(saved_step_, describe_run(config_, tokenizer_bytes(), facts), growing))
    reporter_.message("warning: the damaged checkpoint is now called " + name);
  if (const std::string warning = folder_.warning(); !warning.empty()) reporter_.message("warning: " + warning);
  try {
    require_space(checkpoint_path(folder_.path(), 0), checkpoint_bytes(params_, flat(), tokenizer_bytes()));
  } catch (const IoError& e) {
    reporter_.message(concat("warning: no checkpoint will fit: ", e.what()));
  }
  reporter_.open_metrics(folder_.file("metrics.jsonl"), saved_step_);
  start_watch();
}

/// From the step that was loaded on.
void Trainer::start_watch() {
  watch_->start(state_.step, folder_.file("metrics.jsonl"), folder_.file("samples.jsonl"), saved_step_,
                inputs_.tokenizer);
}

/// The next step; the trace is written when the last step of a range is in it.
std::optional<StepResult> Trainer::make_step() {
  const TrainConfig& t = config_.train;
  const int64_t step = state_.step + 1;
  const auto run = [&] { return run_in_time(); };
  if (!leads() || !t.traces(step)) return run();
  if (!trace_) trace_ = std::make_unique<StepTrace>(target_.device, target_.name);
  const auto finished = trace_->of(step, run);
  if (t.traces(step + 1) && step < t.steps) return finished;
  const std::string problem = trace_->write(folder_.file("trace.json"));
  if (!problem.empty()) reporter_.message("warning: " + problem);
  return finished;
}

/// Accounts for a finished step: it may have been started a step ago.
void Trainer::take(const std::optional<StepResult>& result) {
  if (!result) return;
  state_.updates += !result->report.skipped;
  if (result->scored == 0)
    return reporter_.message(concat("step ", result->step, ": no target of its batch is scored: the step was skipped"));
  state_.norms = result->report.norms;
  if (result_.first_loss == 0) result_.first_loss = result->loss;  // 0: without any
  result_.last_loss = result->loss;
  check_progress(*result);
  const Group::InTime in_time(group_, longest_step_);
  reporter_.step(*result, feed_->waited());
}

/// A step whose update was skipped is named; too many in a row end the run.
void Trainer::check_progress(const StepResult& result) {
  const StepReport& r = result.report;
  const bool bad = r.skipped || !std::isfinite(result.loss);
  const bool shown = !std::isfinite(result.loss) || !(r.grad_norm < kMostNorm);
  state_.skipped_in_row = bad ? state_.skipped_in_row + 1 : 0;
  const std::string outlier = concat(", more than ", config_.train.skip_outliers, " times the mean ", r.norms.mean);
  if (bad)
    reporter_.message(concat("step ", result.step, ": loss ", result.loss, ", gradient norm ", r.grad_norm,
                             r.outlier ? outlier
                             : shown   ? ""
                                       : "; moments, parameters or the learning rate are not finite or too large",
                             ": the update was skipped (", state_.skipped_in_row, " in a row)"));
  if (state_.skipped_in_row < config_.train.skip_limit) return;
  settle_save(true);
  diverged_at_ = result.step;
  throw DivergedError(concat("step ", result.step, ": ", state_.skipped_in_row,
                             " steps in a row had a loss, gradients, moments or parameters that are not finite",
                             r.outlier ? " or gradients that are outliers" : "",
                             "; lower optim.lr or lengthen optim.warmup_steps, and resume from ",
                             newest().empty() ? "the start" : newest()));
}

bool Trainer::evaluation_due() const {
  const TrainConfig& t = config_.train;
  return inputs_.valid && t.eval_every > 0 && state_.step < t.steps && state_.step % t.eval_every == 0 &&
         std::min(reporter_.evaluated(), state_.evaluations.step) < state_.step;
}

/// An evaluation that the metrics hold already, of a run that was resumed, is not made again.
void Trainer::evaluate_on_the_way() {
  take(runner_->collect());
  if (reporter_.evaluated() == state_.step) return note_evaluation(reporter_.evaluated_loss());
  if (const auto e = evaluate_valid(config_.train.eval_tokens)) note_evaluation(e->loss());
}

/// Takes note of an evaluation for the early stop and the best checkpoint, and saves this.
void Trainer::note_evaluation(double loss) {
  EvaluationHistory& all = state_.evaluations;
  if (all.step >= state_.step) return;
  all.add(state_.step, loss, config_.train.early_stop_delta);
  const bool counts = config_.train.keep_best && state_.step > 0;
  if (!counts || !decide(group_, [&] { return loss < all.best_loss; })) return;
  best_to_be_ = {state_.step, loss};
  save();
  note_best();
}

/// Whether so many evaluations in a row were no gain that the run ends before its last step.
bool Trainer::ends_early() const {
  const int64_t most = config_.train.early_stop;
  return most > 0 && state_.evaluations.without_gain >= most && state_.step < config_.train.steps;
}

/// Data that `work` cannot read end the run, but the finished steps are saved first.
template <class Work>
auto Trainer::keeping_steps(Work&& work) try {
  return work();
} catch (const Error& e) {
  const bool data = e.status() == Exit::bad_data || e.status() == Exit::io || e.status() == Exit::missing_input;
  if (!data || state_.step == first_step_) throw;
  settle_save(true);
  ending_ = true;
  save();
  settle_save(true);
  throw Error(concat(e.what(), "; the ", state_.step, " steps before it are saved: continue with --resume"),
              e.status());
}

/// How many tokens an evaluation scores, of each set at most `limit`; 0: all.
int64_t Trainer::evaluation_tokens(int64_t limit) const {
  return inputs_.valid ? inputs_.eval_sets.tokens(limit) + tokens_scored(*inputs_.valid, limit) : 0;
}

/// Evaluates, and writes the result unless the metrics have it already. Nothing if the run is asked to stop meanwhile.
std::optional<Evaluation> Trainer::evaluate_valid(int64_t limit) {
  const EvaluateOptions options{config_.data.seq_len,     limit, [this](int64_t, int64_t) { return !should_stop(); },
                                config_.data.reset_state, 0,     &group_};
  SetEvaluations sets;
  const Evaluation e = keeping_steps([&] {
    const Reporter::Pause not_training(reporter_, evaluation_tokens(limit));
    Evaluation valid = evaluate(lm_, TokenSource::shards(*inputs_.valid), options);
    if (result_.reason.empty()) sets = inputs_.eval_sets.evaluate(lm_, options);
    return valid;
  });
  if (!result_.reason.empty()) return std::nullopt;
  if (reporter_.evaluated() != state_.step) reporter_.evaluation(state_.step, state_.tokens, e, sets);
  return e;
}

/// What this rank asks for, in the low byte a signal's number.
int64_t Trainer::wishes() {
  int64_t wish = StopSignals::pending();
  if (!leads() || state_.step == first_step_) return wish;
  if (config_.train.max_time > 0 && reporter_.seconds() >= config_.train.max_time) wish |= kTimeIsUp;
  if (folder_.consume("stop")) wish |= kStopFile;
  if (folder_.consume("save")) wish |= kSaveFile;
  return wish;
}

/// A signal ends the run wherever it is; for the other reasons at least one step is made, or a run could never end.
bool Trainer::should_stop() {
  std::string& reason = result_.reason;
  if (!reason.empty()) return true;
  int64_t all = 0;
  const Group::InTime in_time(group_, longest_step_);
  for (const int64_t wish : agree(group_, [&] { return wishes(); })) {
    if (reason.empty() && (wish & kSignal)) reason = signal_name(int(wish & kSignal));
    all |= wish;
  }
  save_asked_ |= (all & kSaveFile) != 0;
  if (reason.empty() && (all & kTimeIsUp)) reason = "train.max_time reached";
  if (reason.empty() && (all & kStopFile)) reason = "a file named stop in the run folder";
  return !reason.empty();
}

/// One step, in which no rank may stand still, once it is known how long steps take.
std::optional<StepResult> Trainer::run_in_time() {
  const auto begin = std::chrono::steady_clock::now();
  const Group::InTime in_time(group_, longest_step_);
  const std::optional<StepResult> before = runner_->run(state_.step, *feed_);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  if (state_.step >= first_step_ + 2) longest_step_ = std::max(longest_step_, took.count());
  return before;
}

RunResult Trainer::run() {
  reporter_.banner(inputs_.corpus);
  reporter_.start(state_, {evaluation_tokens(config_.train.eval_tokens), evaluation_tokens(0)});
  while (!train_on()) {
  }
  finish();
  return result_;
}

/// Trains until something ends the run. Returns false if it diverged and went back to a checkpoint.
bool Trainer::train_on() try {
  const TrainConfig& t = config_.train;
  if (evaluation_due()) evaluate_on_the_way();
  watch_->sample(state_.step);
  const int64_t length = config_.data.seq_len;
  const BatchFeed::Samples samples = samples_of(config_, state_, group_.rank(), group_.size());
  feed_ = std::make_unique<BatchFeed>(batches_, samples, t.steps - state_.step, length, target_.device == Device::cuda);
  while (state_.step < t.steps && !ends_early() && !should_stop()) {
    if (std::exchange(save_asked_, false)) save();
    const auto finished = keeping_steps([&] { return make_step(); });
    folder_.keep();
    ++state_.step;
    state_.tokens += t.batch_size * length;
    take(finished);
    if (watch_->due(state_.step)) {
      take(runner_->collect());
      watch_->measure(state_.step, *runner_);
    }
    settle_save(false);
    if (state_.step == t.steps) break;
    if (save_due()) save();
    if (evaluation_due()) evaluate_on_the_way();
    watch_->sample(state_.step);
  }
  take(runner_->collect());
  return true;
} catch (const DivergedError&) {
  if (!roll_back()) throw;
  return false;
}

/// Saves what was learned, which an evaluation that follows may use the time for.
void Trainer::finish() {
  settle_save(true);
  ending_ = true;
  result_.step = state_.step;
  result_.steps = config_.train.steps;
  result_.tokens_per_second = reporter_.tokens_per_second();
  save();
  const bool at_end = state_.step >= config_.train.steps || ends_early();
  if (at_end && inputs_.valid && result_.reason.empty()) result_.valid = evaluate_valid(0);
  if (at_end && result_.reason.empty()) watch_->sample(state_.step, true);
  reporter_.sync();
  settle_save(true);
  result_.finished = at_end && result_.reason.empty();
  const EvaluationHistory& e = state_.evaluations;
  if (ends_early())
    result_.early =
        concat("no gain on valid loss ", e.least, " in ", e.without_gain, " evaluations (train.early_stop)");
  if (e.best_step >= 0 && config_.train.keep_best) result_.best_step = e.best_step, result_.best_loss = e.best_loss;
  const int64_t most = config_.train.eval_tokens;
  const bool comparable = result_.best_step >= 0 && result_.valid && (most == 0 || result_.valid->tokens <= most);
  if (comparable && result_.valid->loss() < result_.best_loss)
    result_.best_step = state_.step, result_.best_loss = result_.valid->loss();
  reporter_.finish();
}

}  // namespace mmfree
