#include "train/run/reporter.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <new>
#include <utility>

#include "core/gpu.h"
#include "core/system/console.h"
#include "layers/parameters.h"
#include "train/run/digest.h"

namespace mmfree {

Reporter::Reporter(const RunConfig& config, const ComputeTarget& target, const Batches& batches, bool quiet,
                   Group& group, Clock clock)
    : config_(config),
      target_(target),
      batches_(batches),
      group_(group),
      speaks_(group.rank() == 0),
      quiet_(quiet || !speaks_),
      progress_(quiet_),
      pace_(std::move(clock)) {}

Reporter::~Reporter() {
  try {
    finish();
  } catch (const std::bad_alloc&) {
    return;  // without memory for a line nothing can be said
  }
}

void Reporter::banner(const Corpus& corpus) const {
  if (quiet_) return;
  const ModelConfig& m = config_.model;
  const auto integer = [](int64_t n) { return static_cast<long long>(n); };
  console::err.format(
      "model   %s parameters (%s in matrices): %lld layers x %lld wide, %lld inner, vocabulary %lld, %s%s\n",
      format_count(double(m.parameter_count())).c_str(), format_count(double(m.matrix_parameter_count())).c_str(),
      integer(m.num_hidden_layers), integer(m.hidden_size), integer(m.intermediate()), integer(m.vocab_size),
      name_of(m.precision), m.uniform() && m.precision_rules.empty() ? "" : " where nothing else is given");
  console::err.format(
      "data    %s tokens in %lld documents, %lld windows of %lld%s\n",
      format_count(double(corpus.total_tokens())).c_str(), integer(corpus.documents()), integer(batches_.windows()),
      integer(config_.data.seq_len),
      corpus.sources().size() > 1 ? concat(", from ", corpus.sources().size(), " sources").c_str() : "");
  const Products products = backward_products(target_, config_.train.backward).ternary;
  console::err.format("run     %s: %lld steps of %lld x %lld tokens on %s in %s%s%s\n", config_.train.run_dir.c_str(),
                      integer(config_.train.steps), integer(config_.train.batch_size), integer(config_.data.seq_len),
                      target_.name.c_str(), name_of(target_.compute),
                      products == Products::compute ? "" : concat(", backward products in ", name_of(products)).c_str(),
                      target_.device == Device::cpu ? concat(", ", omp_get_max_threads(), " threads").c_str() : "");
  if (group_.size() > 1)
    console::err.format("ranks   %s, %lld of %lld leaves each\n", group_.describe().c_str(),
                        integer(config_.train.leaves / group_.size()), integer(config_.train.leaves));
  if (const std::string problem = group_.peers_problem(); !problem.empty())
    console::err.format("note    GPUs exchange by NCCL alone: %s\n", problem.c_str());
  if (target_.device != Device::cuda || !m.uses(TokenKind::attention)) return;
  const std::string slower = config_.data.reset_state         ? "data.reset_state keeps documents apart"
                             : target_.compute != DType::bf16 ? "activations are not bf16"
                                                              : gpu::attention_problem();
  if (!slower.empty()) console::err.format("note    attention runs on slower kernels: %s\n", slower.c_str());
}

void Reporter::open_metrics(const std::string& path, int64_t resume_step) {
  if (speaks_) {
    metrics_ = std::make_unique<MetricsWriter>(path, resume_step);
    evaluated_ = metrics_->evaluated();
    evaluated_loss_ = metrics_->evaluated_loss();
    if (metrics_->damaged_lines() > 0)
      message(concat("warning: dropped ", metrics_->damaged_lines(), " damaged lines of metrics.jsonl"));
    metrics_path_ = path;
    open_events();
  }
  group_.broadcast(&evaluated_, sizeof evaluated_, 0);
  group_.broadcast(&evaluated_loss_, sizeof evaluated_loss_, 0);
}

void Reporter::go_back(const LoopState& state) {
  begin_ = state;
  window_start_ = pace_.training();
  window_tokens_ = 0;
  window_waited_ = 0;  // by a feed that starts anew
  open_metrics(metrics_path_, state.step);
}

void Reporter::step(const StepResult& result, double waited) {
  window_tokens_ += step_tokens();
  pace_.step(step_tokens());
  const TrainConfig& t = config_.train;
  if (result.step % t.log_every == 0 || result.step == 1 || result.step == t.steps) log(result, waited);
}

void Reporter::log(const StepResult& result, double waited) {
  const double now = pace_.training(), window = now - window_start_;
  const double speed = double(window_tokens_) / window;
  const int64_t tokens = begin_.tokens + (result.step - begin_.step) * step_tokens();
  const double data_wait = (waited - window_waited_) / window;
  const std::shared_ptr<Arena> arena = Arena::current(target_.device), other = group_.exchange_arena(target_.device);
  const uint64_t peak = arena->stats().peak + (other == arena ? 0 : other->stats().peak);
  const double flops = training_flops(config_.model, config_.data.seq_len) * speed;
  const double rate = target_.device == Device::cuda ? group_.size() * gpu::info().bf16_rate : 0;
  ProgressState state;
  state.step = result.step, state.steps = config_.train.steps;
  state.loss = result.loss, state.learning_rate = result.report.learning_rate,
  state.grad_norm = result.report.grad_norm;
  state.tokens_per_second = speed, state.elapsed = seconds(), state.eta = seconds_left(result.step);
  if (target_.device == Device::cuda) state.gpu = ProgressState::Gpu{rate > 0 ? flops / rate : 0, data_wait, peak};
  Metrics metrics = {{"step", result.step},
                     {"train/loss", result.loss},
                     {"train/grad_norm", result.report.grad_norm},
                     {"train/learning_rate", result.report.learning_rate},
                     {"train/digest", step_digest(result.loss, result.report.grad_norm)},
                     {"train/epoch", batches_.epochs(tokens / config_.data.seq_len + begin_.left_out)},
                     {"train/tokens", tokens},
                     {"train/tokens_per_sec", speed},
                     {"train/step_time_ms", 1000 * window * double(step_tokens()) / double(window_tokens_)},
                     {"train/mfu", rate > 0 ? flops / rate : std::nan("")},
                     {"train/data_wait", data_wait},
                     {"train/peak_memory", int64_t(peak)},
                     {"time", double(std::time(nullptr))}};
  add_ranks(window, state, metrics);
  progress_.update(state);
  write(metrics);
  window_start_ = now;
  window_tokens_ = 0;
  window_waited_ = waited;
}

/// Until the end: for the steps, and for the evaluations that will be due, from that of this step to the last one.
double Reporter::seconds_left(int64_t step) const {
  const TrainConfig& t = config_.train;
  const int64_t made = std::max(step, evaluated_ + 1) - 1;  // evaluations up to here are made
  const int64_t due = t.eval_every > 0 ? std::max<int64_t>(0, (t.steps - 1) / t.eval_every - made / t.eval_every) : 0;
  return pace_.seconds_for(t.steps - step, due * sizes_.on_the_way + sizes_.at_end);
}

/// What ranks did since the line before, in `window` seconds: a rank's own time is what it did not wait for others.
void Reporter::add_ranks(double window, ProgressState& state, Metrics& metrics) {
  if (group_.size() == 1) return;
  struct Figures {
    double own, waited, bytes;
  };
  const Group::Traffic traffic = group_.traffic();
  const double waited = std::chrono::duration<double>(traffic.waited - window_traffic_.waited).count();
  const Figures mine{window - waited, waited / window, double(traffic.bytes - window_traffic_.bytes)};
  window_traffic_ = traffic;
  std::vector<Figures> all(size_t(group_.size()));
  group_.all_gather(&mine, sizeof mine, all.data());
  const double steps = double(window_tokens_) / double(step_tokens());
  Figures sum{0, 0, 0};
  for (const Figures& f : all) sum.waited += f.waited / double(all.size()), sum.bytes += f.bytes;
  const auto [fastest, slowest] =
      std::minmax_element(all.begin(), all.end(), [](const Figures& a, const Figures& b) { return a.own < b.own; });
  state.ranks = ProgressState::Ranks{group_.size(), sum.waited};
  for (const auto& [key, value] : {std::pair{"train/ranks", double(group_.size())},
                                   {"train/rank_slowest_ms", 1000 * slowest->own / steps},
                                   {"train/rank_fastest_ms", 1000 * fastest->own / steps},
                                   {"train/rank_slowest", double(slowest - all.begin())},
                                   {"train/rank_wait", sum.waited},
                                   {"train/rank_bytes", sum.bytes / steps}})
    metrics.emplace_back(key, value);
}

void Reporter::weights(int64_t step, const std::string& digest) {
  write({{"step", step}, {"checkpoint/weights", digest}});
}

void Reporter::evaluation(int64_t step, int64_t tokens, const Evaluation& e, const SetEvaluations& sets) {
  evaluated_ = std::max(evaluated_, step);
  Metrics metrics = {{"step", step}};
  const auto add = [&](const std::string& prefix, const std::string& name, const Evaluation& of) {
    metrics.emplace_back(prefix + "/loss", of.loss());
    metrics.emplace_back(prefix + "/ppl", of.perplexity());
    metrics.emplace_back(prefix + "/bpb", of.bits_per_byte());
    char figures[100];
    std::snprintf(figures, sizeof figures, " loss %.4f  perplexity %.2f  bits/byte %.4f", of.loss(), of.perplexity(),
                  of.bits_per_byte());
    if (!quiet_) message(concat("step ", step, "  ", name, figures));
  };
  add("val", "val", e);
  for (const auto& [name, of_set] : sets) add("eval/" + name, name, of_set);
  metrics.emplace_back("train/tokens", tokens);
  metrics.emplace_back("time", double(std::time(nullptr)));
  write(metrics);
}

void Reporter::write(const Metrics& metrics) {
  attempt([&] { metrics_->write(metrics); });
  if (events_) attempt_events([&] { events_->write(metrics); });
}

void Reporter::sync() {
  attempt([&] { metrics_->sync(); });
  if (!events_) open_events();
}

void Reporter::open_events() {
  if (!config_.train.tensorboard || !metrics_) return;
  const std::string folder = (std::filesystem::path(metrics_path_).parent_path() / "tb").string();
  attempt_events([&] { events_ = std::make_unique<TensorBoard>(folder, metrics_path_); });
}

/// Without its event file a run goes on: metrics.jsonl holds the same.
void Reporter::attempt_events(const std::function<void()>& write) try { write(); } catch (const Error& e) {
  events_.reset();
  if (!std::exchange(told_events_, true))
    message(concat("warning: ", e.what(), "; TensorBoard's file is written anew with a later checkpoint"));
}

void Reporter::attempt(const std::function<void()>& write) try {
  if (!speaks_) return;
  write();
  if (std::exchange(failing_, false)) message("metrics are written again");
  told_dropped_ |= metrics_->dropped();
} catch (const Error& e) {
  if (!std::exchange(failing_, true))
    message(concat("warning: ", e.what(), "; metrics are kept in memory and written later; training goes on"));
  if (metrics_->dropped() && !std::exchange(told_dropped_, true))
    message("warning: too many metrics wait to be written: the oldest are dropped");
}

void Reporter::finish() {
  progress_.finish();
  if (!failing_ && !told_dropped_) return;
  failing_ = told_dropped_ = false;
  if (const auto lost = metrics_->missing())
    message(concat("warning: metrics of the steps from ", lost->first, " to ", lost->second, " are lost"));
}

}  // namespace mmfree
