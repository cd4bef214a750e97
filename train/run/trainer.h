#pragma once
#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "core/system/files.h"
#include "data/batches.h"
#include "data/text/tokenizer.h"
#include "layers/lm.h"
#include "train/inference/evaluate.h"
#include "train/run/background_save.h"
#include "train/run/checkpoint.h"
#include "train/run/compute_target.h"
#include "train/run/metrics.h"
#include "train/run/progress.h"
#include "train/run/signals.h"
#include "train/run/step.h"

namespace mmfree {

/// How a run ended.
struct RunResult {
  bool finished = false;  ///< false: stopped early, with a complete checkpoint
  std::string reason;     ///< why it stopped early
  int64_t step = 0;
  double first_loss = 0, last_loss = 0;  ///< of the first and last step of this process; 0 without any
  std::optional<Evaluation> valid;       ///< at the end
  double tokens_per_second = 0;          ///< over this process, evaluation and saving excluded; 0 without any step
};

/// One training run in one folder: config.yaml and config.resolved.yaml, run.json, tokenizer.model, metrics.jsonl and
/// checkpoints/. What a step computes depends on the configuration and the step number alone, so a run that was
/// stopped and resumed equals one that was not, bit for bit.
class Trainer {
 public:
  /// Loads or creates everything the run needs. @throws ConfigError, MissingError, DataError, CreateError, also if
  /// another process trains in the folder
  Trainer(RunConfig config, bool quiet, bool force);
  /// Trains to the last step and evaluates, or until a signal, max_time, or a file named `stop` in the run folder ends
  /// it (a file named `save` asks for a checkpoint only). Signals are heeded from the constructor on, also during an
  /// evaluation, which a resumed run then makes again; the others once a step was made. A checkpoint or metrics that
  /// cannot be written end the run only if train.on_save_error says so, or at its end.
  /// @throws DivergedError, IoError, CreateError
  RunResult run();

 private:
  using Clock = std::chrono::steady_clock;

  void open_run_folder();
  void keep_folder();
  void resume_from(const std::string& path, bool force);
  std::optional<std::string> checkpoint_to_resume();
  void banner() const;
  void take(const std::optional<StepResult>& result);
  void check_progress(const StepResult& result);
  void log_step(const StepResult& result);
  bool evaluation_due() const;
  std::optional<Evaluation> evaluate_valid(int64_t limit);
  void write_metrics(const Metrics& metrics);
  void save();
  void settle_save(bool wait);
  void save_failed(const Error& error);
  std::string newest() const;
  template <class Work>
  auto keeping_steps(Work&& work);
  void finish();
  bool should_stop();
  bool consume_file(const char* name) const;
  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  StopSignals signals_;
  RunConfig config_;
  bool quiet_;
  ComputeTarget target_;
  TokenShards train_data_;
  std::optional<TokenShards> valid_data_;
  std::optional<Tokenizer> tokenizer_;
  Batches batches_;
  ParamStore params_;
  LM lm_;
  std::unique_ptr<Optimizer> optimizer_;
  LoopState state_;
  Fd lock_;                          // of the run folder: two runs in one would take each other's files away
  std::unique_ptr<BatchFeed> feed_;  // outlives the runner, which may be copying from its memory
  std::unique_ptr<StepRunner> runner_;
  BackgroundSave saving_;
  RunResult result_;
  std::string resumed_from_;   ///< the checkpoint that this process went on from, if any
  int64_t saved_step_ = -1;    ///< of the newest checkpoint in the run folder, -1 for none
  int64_t saving_step_ = -1;   ///< of the checkpoint under way, if there is one
  bool ending_ = false;        ///< the next save is the last: it must not fail
  bool metrics_wait_ = false;  ///< some could not be written
  std::unique_ptr<MetricsWriter> metrics_;
  Progress progress_;
  Clock::time_point start_ = Clock::now();
  double idle_ = 0;  ///< seconds of this process spent evaluating and saving
  double window_start_ = 0, window_waited_ = 0;
  int64_t window_tokens_ = 0, run_tokens_ = 0, run_steps_ = 0;
};

}  // namespace mmfree
