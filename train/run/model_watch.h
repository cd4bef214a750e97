#pragma once
#include <memory>
#include <optional>
#include <string>

#include "train/run/alarms.h"
#include "train/run/reporter.h"
#include "train/run/samples.h"

namespace mmfree {

/// What a run tells of its model besides losses: telemetry, alarms and texts. None of it changes what a step computes.
class ModelWatch {
 public:
  /// All of these must outlive it. Made before the first step, which may be recorded.
  ModelWatch(const LM& lm, const ParamStore& params, const Optimizer& optimizer, const RunConfig& config,
             const Group& group, Reporter& reporter);
  /// Begins after `step` steps, in rank 0 with the files of the run folder, of which lines up to `resume_step` are
  /// kept. Call it after Reporter::open_metrics, and again if a run goes back. @throws as Samples
  void start(int64_t step, const std::string& metrics, const std::string& samples, int64_t resume_step,
             const std::optional<Tokenizer>& tokenizer);
  /// Whether `measure` has something to do after `step` steps.
  bool due(int64_t step) const { return telemetry_.due(step); }
  /// Writes a line of telemetry, of which the last batch is that of `runner`, and what is wrong with it. Collective.
  void measure(int64_t step, StepRunner& runner);
  /// Writes texts if they are due; what hinders that is told and does not end the run.
  void sample(int64_t step, bool last = false);

 private:
  const LM& lm_;
  const RunConfig& config_;
  bool leads_;
  Reporter& reporter_;
  Telemetry telemetry_;
  std::optional<Alarms> alarms_;
  std::unique_ptr<Samples> samples_;
};

}  // namespace mmfree
