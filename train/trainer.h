#pragma once
#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "data/batches.h"
#include "data/tokenizer.h"
#include "layers/lm.h"
#include "train/background_save.h"
#include "train/checkpoint.h"
#include "train/device.h"
#include "train/evaluate.h"
#include "train/metrics.h"
#include "train/progress.h"
#include "train/step.h"

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
  /// Loads or creates everything the run needs. @throws ConfigError, MissingError, DataError, CreateError
  Trainer(RunConfig config, bool quiet, bool force);
  /// Trains to the last step, or until a signal, max_time, or a file named `stop` in the run folder ends it (a file
  /// named `save` asks for a checkpoint only). @throws DivergedError, IoError
  RunResult run();

 private:
  using Clock = std::chrono::steady_clock;

  void open_run_folder();
  void resume_from(const std::string& path, bool force);
  std::optional<std::string> checkpoint_to_resume();
  void banner() const;
  void take(const std::optional<StepResult>& result);
  void check_progress(const StepResult& result);
  void log_step(const StepResult& result);
  Evaluation evaluate_valid(int64_t limit);
  void log_evaluation(const Evaluation& e);
  void save();
  std::string stop_reason();
  bool consume_file(const char* name) const;
  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  RunConfig config_;
  bool quiet_;
  ComputeTarget target_;
  TokenShards train_data_;
  std::optional<TokenShards> valid_data_;
  std::optional<Tokenizer> tokenizer_;
  Batches batches_;
  ParamStore params_;
  LM lm_;
  AdamW optimizer_;
  LoopState state_;
  std::unique_ptr<BatchFeed> feed_;  // outlives the runner, which may be copying from its memory
  std::unique_ptr<StepRunner> runner_;
  BackgroundSave saving_;
  RunResult result_;
  int64_t saved_step_ = -1;
  std::unique_ptr<MetricsWriter> metrics_;
  Progress progress_;
  Clock::time_point start_ = Clock::now();
  double idle_ = 0;  ///< seconds of this process spent evaluating and saving
  double window_start_ = 0, window_waited_ = 0;
  int64_t window_tokens_ = 0, run_tokens_ = 0;
};

}  // namespace mmfree
