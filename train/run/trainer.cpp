#include "train/run/trainer.h"

#include <omp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/gpu.h"
#include "core/system/files.h"
#include "layers/parameters.h"
#include "train/run/memory_estimate.h"
#include "train/run/signals.h"

namespace mmfree {
namespace fs = std::filesystem;
namespace {

const RunConfig& validated(const RunConfig& config, const TokenShards& data) {
  MMFREE_CHECK(ConfigError, data.vocab_size() <= config.model.vocab_size, config.source, ": model.vocab_size is ",
               config.model.vocab_size, " but the shards in data.train use ", data.vocab_size(),
               " token ids; set model.vocab_size=", data.vocab_size(), " or more");
  return config;
}

std::string now_utc() {
  const std::time_t now = std::time(nullptr);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&now));
  return text;
}

}  // namespace

Trainer::Trainer(RunConfig config, bool quiet, bool force)
    : config_(std::move(config)),
      quiet_(quiet),
      target_(choose_target(config_.train.device, config_.train.compute, config_.source + ": train.device")),
      train_data_(config_.data.train),
      batches_(train_data_,
               {config_.data.seq_len, config_.train.batch_size, uint64_t(config_.train.seed), config_.data.shuffle}),
      params_(parameter_specs(validated(config_, train_data_).model), DType::f32, target_.device),
      lm_(params_, config_.model, target_.compute),
      optimizer_(make_optimizer(params_, config_.optim)),
      progress_(quiet) {
  if (config_.train.threads > 0) omp_set_num_threads(int(config_.train.threads));
  if (!config_.data.valid.empty()) {
    valid_data_.emplace(config_.data.valid);
    MMFREE_CHECK(DataError, valid_data_->info().tokenizer_hash == train_data_.info().tokenizer_hash,
                 "data.valid and data.train were prepared with different tokenizers; prepare them together");
  }
  if (!config_.data.tokenizer.empty()) {
    tokenizer_ = Tokenizer::load(config_.data.tokenizer);
    MMFREE_CHECK(DataError, tokenizer_->hash() == train_data_.info().tokenizer_hash, config_.data.tokenizer,
                 ": is not the tokenizer that data.train was prepared with");
  }
  state_.data = train_data_.fingerprint();
  const std::optional<std::string> from = checkpoint_to_resume();
  if (from)
    resume_from(*from, force);
  else
    params_.initialise(uint64_t(config_.train.seed));
  lm_.requantise();
  open_run_folder();
  metrics_ = std::make_unique<MetricsWriter>((fs::path(config_.train.run_dir) / "metrics.jsonl").string(), saved_step_);
  if (metrics_->damaged_lines() > 0)
    progress_.message(concat("warning: dropped ", metrics_->damaged_lines(), " damaged lines of metrics.jsonl"));
}

std::optional<std::string> Trainer::checkpoint_to_resume() {
  const std::string& resume = config_.train.resume;
  lock_ = lock_directory(config_.train.run_dir);  // before a look at what may still be changing
  const bool present = !checkpoint_steps(config_.train.run_dir).empty();
  if (resume == "false") {
    MMFREE_CHECK(ConfigError, !present, config_.train.run_dir,
                 ": already holds checkpoints; continue with train.resume=auto, or choose another train.run_dir");
    return std::nullopt;
  }
  if (resume != "true" && resume != "auto") {
    std::error_code error;
    MMFREE_CHECK(MissingError, fs::exists(resume, error), "train.resume: no checkpoint at ", quote(resume),
                 "; expected false, true, auto or a checkpoint's path");
    return resume;
  }
  std::vector<std::string> warnings;
  const auto newest = newest_checkpoint(config_.train.run_dir, warnings);
  for (const std::string& w : warnings) progress_.message("warning: " + w);
  MMFREE_CHECK(MissingError, newest || (resume == "auto" && !present), config_.train.run_dir, ": train.resume=", resume,
               " found no intact checkpoint to continue from");
  return newest;
}

void Trainer::resume_from(const std::string& path, bool force) {
  const Checkpoint file(path);
  MMFREE_CHECK(DataError, file.has_states(), path,
               ": is a model without optimizer state (an import?); training cannot be resumed from it");
  std::string dangerous;
  for (const ConfigChange& change : compare(file.config(), config_)) {
    if (change.key == "train.resume") continue;
    progress_.message(concat(change.dangerous ? "changed (dangerous): " : "changed: ", change.text()));
    if (change.dangerous) dangerous += (dangerous.empty() ? "" : ", ") + change.key;
  }
  if (file.state().data != state_.data) {
    progress_.message("changed (dangerous): the content of data.train");
    dangerous += (dangerous.empty() ? "" : ", ") + std::string("the content of data.train");
  }
  MMFREE_CHECK(ConfigError, dangerous.empty() || force, path,
               ": the run would not continue the same training: ", dangerous,
               " changed; undo it, start a new train.run_dir, or insist with --force");
  const int64_t step = file.state().step;
  MMFREE_CHECK(ConfigError, step <= config_.train.steps, config_.source, ": train.steps is ", config_.train.steps,
               " but ", path, " has made ", step, " steps already; raise train.steps");
  std::error_code ignored;
  const bool of_this_run = fs::equivalent(path, checkpoint_path(config_.train.run_dir, step), ignored);
  const std::vector<int64_t> present = checkpoint_steps(config_.train.run_dir);
  MMFREE_CHECK(ConfigError, config_.train.resume != path || present.empty() || (of_this_run && present.back() == step),
               config_.train.run_dir, ": holds checkpoints of another run, or later checkpoints than ", path,
               ", which a later --resume would continue; remove them or choose another train.run_dir");
  const std::string data = state_.data;
  file.load(params_, optimizer_.get());
  state_ = file.state();
  state_.data = data;
  if (of_this_run) saved_step_ = step;
  resumed_from_ = path;
  progress_.message(concat("resuming from ", path, " at step ", state_.step));
}

void Trainer::open_run_folder() {
  const fs::path dir = config_.train.run_dir;
  NeededDirectory((dir / "checkpoints").string()).keep();
  if (!lock_.is_open()) {
    lock_ = lock_directory(dir.string());
    MMFREE_CHECK(CreateError, saved_step_ >= 0 || checkpoint_steps(dir.string()).empty(), dir.string(),
                 ": another process has trained in this folder just now; choose another folder or give --resume");
  }
  MMFREE_CHECK(CreateError, ::access((dir / "checkpoints").c_str(), W_OK | X_OK) == 0, (dir / "checkpoints").string(),
               ": no checkpoints can be written here: ", std::strerror(errno));
  remove_unfinished_checkpoints(dir.string());
  if (saved_step_ >= 0)
    for (const std::string& name : set_aside(dir.string(), saved_step_))
      progress_.message("warning: what could not be read is now called " + name);
  if (fs::is_regular_file(config_.source))
    write_file((dir / "config.yaml").string(), read_file(config_.source, 1 << 20));
  write_file((dir / "config.resolved.yaml").string(), to_yaml(config_));
  if (tokenizer_) write_file((dir / "tokenizer.model").string(), tokenizer_->serialized());
  const nlohmann::ordered_json run = {{"mmfree", MMFREE_VERSION},
                                      {"started", now_utc()},
                                      {"from_step", state_.step},
                                      {"threads", omp_get_max_threads()},
                                      {"device", target_.name},
                                      {"compute", name_of(target_.compute)},
                                      {"parameters", config_.model.parameter_count()},
                                      {"train_tokens", train_data_.total_tokens()},
                                      {"train_data", state_.data}};
  write_file((dir / "run.json").string(), run.dump(1) + "\n");
  try {
    require_space(
        checkpoint_path(dir.string(), 0),
        checkpoint_bytes(params_, optimizer_->states().size(), tokenizer_ ? tokenizer_->serialized() : std::string()));
  } catch (const IoError& e) {
    progress_.message(concat("warning: no checkpoint will fit: ", e.what()));
  }
}

void Trainer::banner() const {
  if (quiet_) return;
  const ModelConfig& m = config_.model;
  std::fprintf(
      stderr, "model   %s parameters (%s in matrices): %lld layers x %lld wide, %lld inner, vocabulary %lld, %s\n",
      format_count(double(m.parameter_count())).c_str(), format_count(double(m.matrix_parameter_count())).c_str(),
      static_cast<long long>(m.num_hidden_layers), static_cast<long long>(m.hidden_size),
      static_cast<long long>(m.intermediate()), static_cast<long long>(m.vocab_size), name_of(m.precision));
  std::fprintf(stderr, "data    %s tokens in %lld documents, %lld windows of %lld\n",
               format_count(double(train_data_.total_tokens())).c_str(),
               static_cast<long long>(train_data_.documents()), static_cast<long long>(batches_.windows()),
               static_cast<long long>(config_.data.seq_len));
  std::fprintf(stderr, "run     %s: %lld steps of %lld x %lld tokens on %s in %s%s\n", config_.train.run_dir.c_str(),
               static_cast<long long>(config_.train.steps), static_cast<long long>(config_.train.batch_size),
               static_cast<long long>(config_.data.seq_len), target_.name.c_str(), name_of(target_.compute),
               target_.device == Device::cpu ? concat(", ", omp_get_max_threads(), " threads").c_str() : "");
}

/// Accounts for a finished step: it may have been started a step ago.
void Trainer::take(const std::optional<StepResult>& result) {
  if (!result) return;
  const int64_t tokens = config_.train.batch_size * config_.data.seq_len;
  state_.updates += !result->report.skipped;
  window_tokens_ += tokens;
  if (result->scored == 0)
    return progress_.message(concat("step ", result->step, ": no target of its batch is scored: the step was skipped"));
  if (run_tokens_ == 0) result_.first_loss = result->loss;
  run_tokens_ += tokens;
  result_.last_loss = result->loss;
  check_progress(*result);
  const TrainConfig& t = config_.train;
  if (result->step % t.log_every == 0 || result->step == 1 || result->step == t.steps) log_step(*result);
}

void Trainer::check_progress(const StepResult& result) {
  const double norm = result.report.grad_norm;
  const bool bad = result.report.skipped || !std::isfinite(result.loss);
  const bool shown = !std::isfinite(result.loss) || !(norm < kMostNorm);
  state_.skipped_in_row = bad ? state_.skipped_in_row + 1 : 0;
  if (bad)
    progress_.message(concat("step ", result.step, ": loss ", result.loss, ", gradient norm ", norm,
                             shown ? "" : "; moments, parameters or the learning rate are not finite or too large",
                             ": the update was skipped (", state_.skipped_in_row, " in a row)"));
  if (state_.skipped_in_row >= config_.train.skip_limit) settle_save(true);
  MMFREE_CHECK(DivergedError, state_.skipped_in_row < config_.train.skip_limit, "step ", result.step, ": ",
               state_.skipped_in_row,
               " steps in a row had a loss, gradients, moments or parameters that are not finite; lower optim.lr or "
               "lengthen optim.warmup_steps, and "
               "resume from ",
               newest().empty() ? "the start" : newest());
}

void Trainer::log_step(const StepResult& result) {
  const double now = seconds() - idle_, window = now - window_start_;
  const double step_tokens = double(config_.train.batch_size * config_.data.seq_len);
  const double speed = double(window_tokens_) / window;
  const double eta = double(config_.train.steps - result.step) * step_tokens * now / double(run_tokens_);
  const double waited = (feed_->waited() - window_waited_) / window;
  const uint64_t peak = Arena::current(target_.device)->stats().peak;
  // Forward, and twice that backward: two operations per weight and token each.
  const double flops = 6 * double(config_.model.matrix_parameter_count()) * speed;
  const double rate = target_.device == Device::cuda ? gpu::info().bf16_rate : 0;
  ProgressState state{result.step,
                      config_.train.steps,
                      result.loss,
                      result.report.learning_rate,
                      result.report.grad_norm,
                      speed,
                      seconds(),
                      eta,
                      {}};
  if (target_.device == Device::cuda) state.gpu = ProgressState::Gpu{rate > 0 ? flops / rate : 0, waited, peak};
  progress_.update(state);
  write_metrics({{"step", result.step},
                 {"train/loss", result.loss},
                 {"train/grad_norm", result.report.grad_norm},
                 {"train/learning_rate", result.report.learning_rate},
                 {"train/epoch", double(result.step * config_.train.batch_size) / double(batches_.windows())},
                 {"train/tokens", result.step * config_.train.batch_size * config_.data.seq_len},
                 {"train/tokens_per_sec", speed},
                 {"train/step_time_ms", 1000 * window * step_tokens / double(window_tokens_)},
                 {"train/mfu", rate > 0 ? flops / rate : std::nan("")},
                 {"train/data_wait", waited},
                 {"train/peak_memory", int64_t(peak)},
                 {"time", double(std::time(nullptr))}});
  window_start_ = now;
  window_tokens_ = 0;
  window_waited_ = feed_->waited();
}

bool Trainer::evaluation_due() const {
  const TrainConfig& t = config_.train;
  return valid_data_ && t.eval_every > 0 && state_.step < t.steps && state_.step % t.eval_every == 0 &&
         metrics_->evaluated() < state_.step;
}

/// Data that `work` cannot read end the run, but take no finished step away.
template <class Work>
auto Trainer::keeping_steps(Work&& work) try {
  return work();
} catch (const Error& e) {
  const bool data = e.status() == Exit::bad_data || e.status() == Exit::io || e.status() == Exit::missing_input;
  if (!data || run_steps_ == 0) throw;
  settle_save(true);
  ending_ = true;
  save();
  settle_save(true);
  throw Error(concat(e.what(), "; the ", state_.step, " steps before it are saved: continue with --resume"),
              e.status());
}

/// Evaluates and writes the result down, unless it is there already. Nothing if the run is asked to stop meanwhile.
std::optional<Evaluation> Trainer::evaluate_valid(int64_t limit) {
  const double begin = seconds();
  const Evaluation e = keeping_steps([&] {
    return evaluate(lm_, TokenSource::shards(*valid_data_),
                    {config_.data.seq_len, limit, [this](int64_t, int64_t) { return !should_stop(); }});
  });
  idle_ += seconds() - begin;
  if (!result_.reason.empty()) return std::nullopt;
  if (metrics_->evaluated() == state_.step) return e;
  write_metrics({{"step", state_.step},
                 {"val/loss", e.loss()},
                 {"val/ppl", e.perplexity()},
                 {"val/bpb", e.bits_per_byte()},
                 {"train/tokens", state_.tokens},
                 {"time", double(std::time(nullptr))}});
  char line[120];
  std::snprintf(line, sizeof line, "step %lld  val loss %.4f  perplexity %.2f  bits/byte %.4f",
                static_cast<long long>(state_.step), e.loss(), e.perplexity(), e.bits_per_byte());
  if (!quiet_) progress_.message(line);
  return e;
}

/// What cannot be written now is kept for later, which is worth a line once.
void Trainer::write_metrics(const Metrics& metrics) try {
  metrics_->write(metrics);
  if (std::exchange(metrics_wait_, false)) progress_.message("metrics are written again");
} catch (const Error& e) {
  if (!std::exchange(metrics_wait_, true) || config_.train.on_save_error == "stop") save_failed(e);
}

/// A failed write leaves the older checkpoints as they were. Whether training goes on without is the user's choice, but
/// a run must not end as if it were saved.
void Trainer::save_failed(const Error& error) {
  const std::string which = newest().empty() ? "there is no checkpoint" : "the newest checkpoint is " + newest();
  if (ending_ || config_.train.on_save_error == "stop")
    throw Error(concat(error.what(), "; ", which, newest().empty() ? "" : "; continue from it with --resume"),
                error.status());
  progress_.message(concat("warning: ", error.what(), "; ", which, "; training goes on"));
}

std::string Trainer::newest() const {
  const std::string path = saved_step_ >= 0 ? checkpoint_path(config_.train.run_dir, saved_step_) : resumed_from_;
  std::error_code ignored;
  return fs::exists(path, ignored) ? path : "";
}

/// Someone may have removed the folder, and another run may have made it again.
void Trainer::keep_folder() {
  const std::string& dir = config_.train.run_dir;
  NeededDirectory((fs::path(dir) / "checkpoints").string()).keep();
  struct stat mine = {}, there = {};
  if (::fstat(lock_.get(), &mine) != 0 || ::stat(dir.c_str(), &there) != 0 || mine.st_ino == there.st_ino) return;
  Fd lock = lock_directory(dir);
  MMFREE_CHECK(CreateError, checkpoint_steps(dir).empty(), dir,
               ": is another folder than at the start, with the checkpoints of another run; nothing is written there");
  lock_ = std::move(lock);
}

void Trainer::save() {
  const double begin = seconds();
  take(runner_ ? runner_->collect() : std::nullopt);
  settle_save(true);
  if (saved_step_ == state_.step && !newest().empty()) return;
  saving_step_ = state_.step;
  const std::string path = checkpoint_path(config_.train.run_dir, state_.step);
  const auto write = [this, path, state = state_](const FlatState& flat) {
    save_checkpoint(path, config_, params_, flat, state, tokenizer_ ? tokenizer_->serialized() : std::string());
    retain_checkpoints(config_.train.run_dir, state.step, config_.train.keep_last);
  };
  try {
    keep_folder();
    metrics_->sync();
    saving_.start({params_.values(), optimizer_->states()}, write);
    if (!saving_.pending()) saved_step_ = saving_step_;
  } catch (const Error& e) {
    save_failed(e);
  }
  idle_ += seconds() - begin;
}

/// Takes note of how the save under way ended: if it has, or in any case.
void Trainer::settle_save(bool wait) try {
  if (!saving_.pending()) return;
  if (wait) saving_.wait();
  if (wait || saving_.poll()) saved_step_ = saving_step_;
} catch (const Error& e) {
  save_failed(e);
}

bool Trainer::consume_file(const char* name) const {
  std::error_code error;
  return fs::remove(fs::path(config_.train.run_dir) / name, error);
}

/// A signal ends the run wherever it is; for the other reasons at least one step is made, or a run could never end.
bool Trainer::should_stop() {
  std::string& reason = result_.reason;
  if (!reason.empty()) return true;
  if (const int signal = StopSignals::pending())
    reason = signal_name(signal);
  else if (run_steps_ == 0)
    return false;
  else if (config_.train.max_time > 0 && seconds() >= config_.train.max_time)
    reason = "train.max_time reached";
  else if (consume_file("stop"))
    reason = "a file named stop in the run folder";
  return !reason.empty();
}

RunResult Trainer::run() {
  const TrainConfig& t = config_.train;
  banner();
  start_ = Clock::now();
  if (evaluation_due()) evaluate_valid(t.eval_tokens);
  runner_ = std::make_unique<StepRunner>(lm_, params_, *optimizer_, config_, recompute_of(t, target_.device));
  feed_ = std::make_unique<BatchFeed>(batches_, state_.step, t.steps, t.batch_size, config_.data.seq_len,
                                      target_.device == Device::cuda);
  while (state_.step < t.steps && !should_stop()) {
    const auto finished = keeping_steps([&] { return runner_->run(state_.step, *feed_); });
    ++state_.step;
    ++run_steps_;
    state_.tokens += t.batch_size * config_.data.seq_len;
    take(finished);
    settle_save(false);
    if (state_.step == t.steps) break;
    if (evaluation_due()) {
      take(runner_->collect());
      evaluate_valid(t.eval_tokens);
    }
    if ((t.save_every > 0 && state_.step % t.save_every == 0) || consume_file("save")) save();
  }
  finish();
  return result_;
}

/// Saves what was learned, which an evaluation that follows may use the time for.
void Trainer::finish() {
  take(runner_->collect());
  settle_save(true);
  ending_ = true;
  result_.step = state_.step;
  result_.tokens_per_second = double(run_tokens_) / (seconds() - idle_);
  save();
  if (state_.step == config_.train.steps && valid_data_ && result_.reason.empty()) {
    result_.valid = evaluate_valid(0);
    metrics_->sync();
  }
  settle_save(true);
  result_.finished = state_.step >= config_.train.steps && result_.reason.empty();
  progress_.finish();
}

}  // namespace mmfree
