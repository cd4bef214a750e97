#include "train/trainer.h"

#include <omp.h>

#include <cmath>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/files.h"
#include "layers/parameters.h"
#include "train/signals.h"

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
      train_data_(config_.data.train),
      batches_(train_data_,
               {config_.data.seq_len, config_.train.batch_size, uint64_t(config_.train.seed), config_.data.shuffle}),
      params_(parameter_specs(validated(config_, train_data_).model), DType::f32),
      lm_(params_, config_.model),
      optimizer_(params_, config_.optim),
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
  metrics_ = std::make_unique<MetricsWriter>((fs::path(config_.train.run_dir) / "metrics.jsonl").string(),
                                             from ? state_.step : -1);
  if (metrics_->damaged_lines() > 0)
    progress_.message(concat("warning: dropped ", metrics_->damaged_lines(), " damaged lines of metrics.jsonl"));
}

std::optional<std::string> Trainer::checkpoint_to_resume() {
  const std::string& resume = config_.train.resume;
  const bool present = !checkpoint_steps(config_.train.run_dir).empty();
  if (resume == "false") {
    MMFREE_CHECK(ConfigError, !present, config_.train.run_dir,
                 ": already holds checkpoints; continue with train.resume=auto, or choose another train.run_dir");
    return std::nullopt;
  }
  if (resume != "true" && resume != "auto") return resume;
  std::vector<std::string> warnings;
  const auto newest = newest_checkpoint(config_.train.run_dir, warnings);
  for (const std::string& w : warnings) progress_.message("warning: " + w);
  MMFREE_CHECK(MissingError, newest || (resume == "auto" && !present), config_.train.run_dir, ": train.resume=", resume,
               " found no intact checkpoint to continue from");
  return newest;
}

void Trainer::resume_from(const std::string& path, bool force) {
  const Checkpoint file(path);
  MMFREE_CHECK(DataError, file.has_moments(), path,
               ": is a model without optimizer state (an import?); training cannot be resumed from it");
  std::string dangerous;
  for (const ConfigChange& change : compare(file.config(), config_)) {
    if (change.key == "train.resume") continue;
    progress_.message(concat(change.dangerous ? "changed (dangerous): " : "changed: ", change.text()));
    if (change.dangerous) dangerous += (dangerous.empty() ? "" : ", ") + change.key;
  }
  if (file.state().data != state_.data)
    dangerous += (dangerous.empty() ? "" : ", ") + std::string("the content of data.train");
  MMFREE_CHECK(ConfigError, dangerous.empty() || force, path,
               ": the run would not continue the same training: ", dangerous,
               " changed; undo it, start a new train.run_dir, or insist with --force");
  const std::vector<int64_t> present = checkpoint_steps(config_.train.run_dir);
  MMFREE_CHECK(ConfigError, config_.train.resume != path || present.empty() || present.back() <= file.state().step,
               config_.train.run_dir, ": holds later checkpoints than ", path,
               ", which a later --resume would continue; remove them or choose another train.run_dir");
  const std::string data = state_.data;
  file.load(params_, &optimizer_);
  state_ = file.state();
  state_.data = data;
  saved_step_ = state_.step;
  progress_.message(concat("resuming from ", path, " at step ", state_.step));
}

void Trainer::open_run_folder() {
  const fs::path dir = config_.train.run_dir;
  std::error_code error;
  fs::create_directories(dir / "checkpoints", error);
  MMFREE_CHECK(CreateError, !error, dir.string(), ": cannot create the run folder: ", error.message());
  remove_unfinished_checkpoints(dir.string());
  if (fs::is_regular_file(config_.source))
    write_file((dir / "config.yaml").string(), read_file(config_.source, 1 << 20));
  write_file((dir / "config.resolved.yaml").string(), to_yaml(config_));
  if (tokenizer_) write_file((dir / "tokenizer.model").string(), tokenizer_->serialized());
  const nlohmann::ordered_json run = {{"mmfree", MMFREE_VERSION},
                                      {"started", now_utc()},
                                      {"from_step", state_.step},
                                      {"threads", omp_get_max_threads()},
                                      {"device", "cpu"},
                                      {"parameters", config_.model.parameter_count()},
                                      {"train_tokens", train_data_.total_tokens()},
                                      {"train_data", state_.data}};
  write_file((dir / "run.json").string(), run.dump(1) + "\n");
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
  std::fprintf(stderr, "run     %s: %lld steps of %lld x %lld tokens on cpu, %d threads\n",
               config_.train.run_dir.c_str(), static_cast<long long>(config_.train.steps),
               static_cast<long long>(config_.train.batch_size), static_cast<long long>(config_.data.seq_len),
               omp_get_max_threads());
}

Trainer::StepResult Trainer::step() {
  const int64_t rows = config_.train.batch_size, micro = config_.train.micro_batch(), t = config_.data.seq_len;
  const double scale = 1.0 / double(rows * t);
  double loss = 0;
  params_.begin_gradients();
  for (int64_t row = 0; row < rows; row += micro) {
    Tensor ids({micro * t}, DType::i32), targets({micro * t}, DType::i32);
    batches_.read(state_.step, row, row + micro, ids.mut<int32_t>(), targets.mut<int32_t>());
    Tape tape;
    const Var part = lm_.loss(ids, targets, micro, scale);
    tape.backward(part);
    loss += double(*part.value().data<float>());
  }
  params_.finish_gradients();
  const StepReport report = optimizer_.update(state_.step + 1, config_.train.steps);
  if (!report.skipped) lm_.requantise();
  ++state_.step;
  state_.updates = optimizer_.updates();
  state_.tokens += rows * t;
  window_tokens_ += rows * t;
  run_tokens_ += rows * t;
  return {loss, report};
}

void Trainer::check_progress(const StepResult& result) {
  const bool bad = result.report.skipped || !std::isfinite(result.loss);
  state_.skipped_in_row = bad ? state_.skipped_in_row + 1 : 0;
  if (bad)
    progress_.message(concat("step ", state_.step, ": loss ", result.loss, ", gradient norm ", result.report.grad_norm,
                             ": the update was skipped (", state_.skipped_in_row, " in a row)"));
  MMFREE_CHECK(DivergedError, state_.skipped_in_row < config_.train.skip_limit, "step ", state_.step, ": ",
               state_.skipped_in_row,
               " steps in a row had a non-finite loss or gradient; lower optim.lr or lengthen optim.warmup_steps, and "
               "resume from ",
               saved_step_ >= 0 ? checkpoint_path(config_.train.run_dir, saved_step_) : std::string("the start"));
}

void Trainer::log_step(const StepResult& result) {
  const double now = seconds() - idle_, window = now - window_start_;
  const double speed = double(window_tokens_) / window;
  const double steps_per_second = double(run_tokens_) / double(config_.train.batch_size * config_.data.seq_len) / now;
  const double eta = double(config_.train.steps - state_.step) / steps_per_second;
  progress_.update({state_.step, config_.train.steps, result.loss, result.report.learning_rate, result.report.grad_norm,
                    speed, seconds(), eta});
  metrics_->write({{"step", state_.step},
                   {"train/loss", result.loss},
                   {"train/grad_norm", result.report.grad_norm},
                   {"train/learning_rate", result.report.learning_rate},
                   {"train/epoch", double(state_.step * config_.train.batch_size) / double(batches_.windows())},
                   {"train/tokens", state_.tokens},
                   {"train/tokens_per_sec", speed},
                   {"train/step_time_ms",
                    1000 * window * double(config_.train.batch_size * config_.data.seq_len) / double(window_tokens_)},
                   {"time", double(std::time(nullptr))}});
  window_start_ = now;
  window_tokens_ = 0;
}

Evaluation Trainer::evaluate_valid(int64_t limit) {
  const double begin = seconds();
  const Evaluation e = evaluate(lm_, TokenSource::shards(*valid_data_), {config_.data.seq_len, limit, {}});
  idle_ += seconds() - begin;
  return e;
}

void Trainer::log_evaluation(const Evaluation& e) {
  metrics_->write({{"step", state_.step},
                   {"val/loss", e.loss()},
                   {"val/ppl", e.perplexity()},
                   {"val/bpb", e.bits_per_byte()},
                   {"train/tokens", state_.tokens},
                   {"time", double(std::time(nullptr))}});
  char line[120];
  std::snprintf(line, sizeof line, "step %lld  val loss %.4f  perplexity %.2f  bits/byte %.4f",
                static_cast<long long>(state_.step), e.loss(), e.perplexity(), e.bits_per_byte());
  if (!quiet_) progress_.message(line);
}

void Trainer::save() {
  if (saved_step_ == state_.step) return;
  const double begin = seconds();
  metrics_->sync();
  save_checkpoint(checkpoint_path(config_.train.run_dir, state_.step), config_, params_, &optimizer_, state_,
                  tokenizer_ ? tokenizer_->serialized() : std::string());
  saved_step_ = state_.step;
  retain_checkpoints(config_.train.run_dir, state_.step, config_.train.keep_last);
  idle_ += seconds() - begin;
}

bool Trainer::consume_file(const char* name) const {
  std::error_code error;
  return fs::remove(fs::path(config_.train.run_dir) / name, error);
}

std::string Trainer::stop_reason() {
  if (const int signal = StopSignals::pending()) return signal_name(signal);
  if (config_.train.max_time > 0 && seconds() >= config_.train.max_time) return "train.max_time reached";
  if (consume_file("stop")) return "a file named stop in the run folder";
  return {};
}

RunResult Trainer::run() {
  const StopSignals signals;
  const TrainConfig& t = config_.train;
  RunResult result;
  banner();
  start_ = Clock::now();
  if (valid_data_ && t.eval_every > 0 && state_.step == 0) log_evaluation(evaluate_valid(t.eval_tokens));
  for (bool first = true; state_.step < t.steps; first = false) {
    const StepResult s = step();
    if (first) result.first_loss = s.loss;
    result.last_loss = s.loss;
    check_progress(s);
    if (state_.step % t.log_every == 0 || state_.step == 1 || state_.step == t.steps) log_step(s);
    if (valid_data_ && t.eval_every > 0 && state_.step % t.eval_every == 0 && state_.step < t.steps)
      log_evaluation(evaluate_valid(t.eval_tokens));
    if (state_.step < t.steps && ((t.save_every > 0 && state_.step % t.save_every == 0) || consume_file("save")))
      save();
    result.reason = stop_reason();
    if (!result.reason.empty() && state_.step < t.steps) break;
  }
  result.step = state_.step;
  result.finished = state_.step >= t.steps;
  result.tokens_per_second = double(run_tokens_) / (seconds() - idle_);
  if (result.finished && valid_data_) {
    result.valid = evaluate_valid(0);
    if (run_tokens_ > 0) log_evaluation(*result.valid);
  }
  save();
  progress_.finish();
  return result;
}

}  // namespace mmfree
