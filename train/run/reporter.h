#pragma once
#include <functional>
#include <memory>
#include <string>

#include "core/ranks/group.h"
#include "data/batches.h"
#include "train/run/compute_target.h"
#include "train/run/eval_sets.h"
#include "train/run/loop_state.h"
#include "train/run/metrics.h"
#include "train/run/pace.h"
#include "train/run/progress.h"
#include "train/run/step.h"
#include "train/watch/tensorboard.h"

namespace mmfree {

/// Tells how training goes: progress for people on stderr, metrics.jsonl for programs, event files for TensorBoard.
/// Measures time and rates. Of several ranks only rank 0 speaks; steps and evaluations are collective.
class Reporter {
 public:
  /// `config`, `target`, `batches` and `group` must outlive it.
  Reporter(const RunConfig& config, const ComputeTarget& target, const Batches& batches, bool quiet, Group& group,
           Clock clock = steady_seconds);
  /// Says which metrics are lost.
  ~Reporter();

  /// A line for people, also if quiet.
  void message(const std::string& text) {
    if (speaks_) progress_.message(text);
  }
  /// Model, data and run in three lines, unless quiet.
  void banner(const Corpus& corpus) const;
  /// Opens the metrics file as MetricsWriter does, and with train.tensorboard the event file of what it holds, in the
  /// folder `tb` beside it; both in rank 0. Collective.
  void open_metrics(const std::string& path, int64_t resume_step);

  /// How many tokens an evaluation scores; 0: there is none.
  struct EvaluationSizes {
    int64_t on_the_way = 0, at_end = 0;
  };
  /// Sets the time to zero, where `state` says that training stands.
  void start(const LoopState& state, const EvaluationSizes& sizes) {
    pace_.start();
    begin_ = state;
    sizes_ = sizes;
  }
  /// Training goes on from `state`, of an earlier step. The time runs on, and the lines of later steps are dropped.
  void go_back(const LoopState& state);
  /// Seconds since the start.
  double seconds() const { return pace_.seconds(); }
  /// While alive, time does not count as training.
  class Pause {
   public:
    /// `evaluated`: it is an evaluation that scores so many tokens; the time for those to come is estimated from them.
    explicit Pause(Reporter& reporter, int64_t evaluated = 0)
        : reporter_(reporter), begin_(reporter.seconds()), evaluated_(evaluated) {}
    ~Pause() { reporter_.pace_.pause(reporter_.seconds() - begin_, evaluated_); }
    Pause(const Pause&) = delete;

   private:
    Reporter& reporter_;
    double begin_;
    int64_t evaluated_;
  };

  /// Counts a finished step, and writes its line if one is due. `waited` are the seconds spent waiting for data so far.
  void step(const StepResult& result, double waited);
  /// Writes the digest of the weights after `step` steps.
  void weights(int64_t step, const std::string& digest);
  /// Writes an evaluation after `step` steps and `tokens` trained tokens.
  void evaluation(int64_t step, int64_t tokens, const Evaluation& evaluation, const SetEvaluations& sets = {});
  /// Writes a line of other metrics.
  void write(const Metrics& metrics);
  /// The step of the newest evaluation in the metrics, -1 without one.
  int64_t evaluated() const { return evaluated_; }
  /// Its loss, of a run that was resumed; NaN if the metrics hold none.
  double evaluated_loss() const { return evaluated_loss_; }
  /// Over this process, pauses excluded; 0 without any step.
  double tokens_per_second() const { return pace_.tokens_per_second(); }

  /// Brings the metrics to the device. Those that cannot be written, here or in a step, do not end the run: a warning
  /// says so, and they are written later; the event file is then written anew here.
  void sync();
  /// Ends the updating line, and says which metrics are lost.
  void finish();

 private:
  void log(const StepResult& result, double waited);
  double seconds_left(int64_t step) const;
  void add_ranks(double window, ProgressState& state, Metrics& metrics);
  void attempt(const std::function<void()>& write);
  void open_events();
  void attempt_events(const std::function<void()>& write);
  int64_t step_tokens() const { return config_.train.batch_size * config_.data.seq_len; }

  const RunConfig& config_;
  const ComputeTarget& target_;
  const Batches& batches_;
  Group& group_;
  bool speaks_, quiet_;
  Progress progress_;
  std::unique_ptr<MetricsWriter> metrics_;
  std::string metrics_path_;
  std::unique_ptr<TensorBoard> events_;
  bool told_events_ = false;   ///< it was said that events cannot be written
  bool failing_ = false;       ///< some metrics could not be written yet
  bool told_dropped_ = false;  ///< it was said that metrics are dropped
  Pace pace_;
  EvaluationSizes sizes_;
  double window_start_ = 0, window_waited_ = 0;  ///< at the line before: training seconds, seconds waited for data
  int64_t window_tokens_ = 0;                    ///< since the line before
  Group::Traffic window_traffic_;                ///< at the line before
  int64_t evaluated_ = -1;
  double evaluated_loss_ = 0;
  LoopState begin_;  ///< from where the steps are counted
};

}  // namespace mmfree
