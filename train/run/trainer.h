#pragma once
#include <memory>
#include <optional>
#include <string>

#include "core/ranks/group.h"
#include "core/system/signals.h"
#include "data/batches.h"
#include "layers/lm.h"
#include "train/inference/model.h"
#include "train/run/background_save.h"
#include "train/run/checkpoint.h"
#include "train/run/compute_target.h"
#include "train/run/lengths.h"
#include "train/run/model_watch.h"
#include "train/run/reporter.h"
#include "train/run/run_folder.h"
#include "train/run/run_inputs.h"
#include "train/run/shards.h"
#include "train/run/step.h"
#include "train/run/step_trace.h"

namespace mmfree {

/// How a run ended.
struct RunResult {
  bool finished = false;  ///< false: stopped early, with a complete checkpoint
  std::string reason;     ///< why it stopped early
  std::string early;      ///< why it finished before its last step (train.early_stop)
  int64_t step = 0;
  int64_t steps = 0;                     ///< of the whole run
  double first_loss = 0, last_loss = 0;  ///< of the first and last step of this process; 0 without any
  std::optional<Evaluation> valid;       ///< at the end
  double tokens_per_second = 0;          ///< over this process, evaluation and saving excluded; 0 without any step
  int64_t best_step = -1;                ///< of the checkpoint that train.keep_best keeps; -1: none
  double best_loss = 0;                  ///< its loss in the evaluation
};

/// One training run in one folder. What a step computes depends on the configuration and the step number alone, so a
/// run that was stopped and resumed equals one that was not, bit for bit.
class Trainer {
 public:
  /// Loads or creates everything the run needs. `source` is the model that train.init_from names, if it was loaded
  /// already. The ranks of `group` train together: each makes the same calls, and rank 0 alone owns the folder, the
  /// metrics and what people read.
  /// @throws ConfigError, MissingError, DataError, CreateError, also if another process trains in the folder
  Trainer(RunConfig config, bool quiet, bool force, std::optional<Model> source = {}, Group& group = lone_group());
  /// Trains to the last step and evaluates, or until a signal, max_time, or a file named `stop` in the run folder ends
  /// it (a file named `save` asks for a checkpoint only). Signals are heeded from the constructor on, also during an
  /// evaluation, which a resumed run then makes again; the others once a step was made. A signal to one rank is enough:
  /// all end at the same step. A checkpoint that cannot be
  /// written ends the run only if train.on_save_error says so, or at its end; metrics that cannot never do. A run that
  /// diverges goes back as often as train.rollback says.
  /// @throws DivergedError, IoError, CreateError
  RunResult run();

 private:
  bool leads() const { return group_.rank() == 0; }
  void require_equal_ranks();
  void decide_leaves(int64_t otherwise);
  void decide_backward(Products otherwise);
  void make_runner();
  bool resume(bool force);
  std::string find_and_resume(bool force);
  void resume_from(const Checkpoint& file, bool force);
  void adopt_framing();
  void warn_of_bare_shards();
  void check_changes(const Checkpoint& file, bool force);
  void tell_jump(const Checkpoint& file);
  void tell_order(const Checkpoint& file, const std::vector<std::string>& changed);
  void resolve_lengths_after(const LoopState& made);
  bool roll_back();
  std::string load_good_checkpoint(int64_t diverged);
  void go_on_from(LoopState good, const LoopState& diverged);
  void start_afresh(std::optional<Model> source);
  bool adopt_tokenizer(const Tokenizer& tokenizer);
  void open_run_folder();
  void start_watch();

  std::optional<StepResult> make_step();
  std::optional<StepResult> run_in_time();
  void take(const std::optional<StepResult>& result);
  void check_progress(const StepResult& result);
  bool train_on();
  bool evaluation_due() const;
  void evaluate_on_the_way();
  void note_evaluation(double loss);
  bool ends_early() const;
  int64_t evaluation_tokens(int64_t limit) const;
  std::optional<Evaluation> evaluate_valid(int64_t limit);
  template <class Work>
  auto keeping_steps(Work&& work);
  int64_t wishes();
  bool should_stop();
  void finish();

  bool save_due() const;
  void save(bool again = false);
  void saved();
  void note_best();
  Retention retention(const LoopState& state) const;
  void settle_save(bool wait);
  void write_failed(const Error& error);
  std::string newest() const;
  FlatState flat() const;
  std::string tokenizer_bytes() const { return inputs_.tokenizer ? inputs_.tokenizer->serialized() : std::string(); }

  StopSignals signals_;
  Group& group_;
  RunConfig config_;
  int64_t asked_leaves_;                    ///< as configured, 0: not decided there
  std::optional<Products> asked_backward_;  ///< the same, nullopt: not decided there
  ComputeTarget target_;
  RunInputs inputs_;
  Batches batches_;
  Lengths asked_lengths_;  ///< as configured; config_ holds the steps they come to
  ParamStore params_;
  LM lm_;
  std::unique_ptr<Optimizer> optimizer_;
  LoopState state_;
  RunFolder folder_;
  Reporter reporter_;
  std::unique_ptr<ModelWatch> watch_;
  std::unique_ptr<BatchFeed> feed_;  // outlives the runner, which may be copying from its memory
  std::unique_ptr<StepRunner> runner_;
  std::unique_ptr<StepTrace> trace_;  ///< from the first traced step on
  BackgroundSave saving_;
  RunResult result_;
  int64_t first_step_ = 0;    ///< where this process starts
  std::string resumed_from_;  ///< the checkpoint that this process continues, if any
  int64_t saved_step_ = -1;   ///< of the newest checkpoint in the run folder, -1 for none
  int64_t saving_step_ = -1;  ///< of the checkpoint under way, if there is one
  /// Step and loss of the best evaluation, as long as its checkpoint is not saved.
  std::optional<std::pair<int64_t, double>> best_to_be_;
  int64_t diverged_at_ = 0;  ///< the step with which the run was given up, if any
  double longest_step_ = 0;  ///< seconds; of the first two, which take longer, nothing is known
  bool save_asked_ = false;  ///< by a file named `save`
  bool ending_ = false;      ///< the next save is the last: it must not fail
};

}  // namespace mmfree
