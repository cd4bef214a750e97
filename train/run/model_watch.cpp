#include "train/run/model_watch.h"

#include <ctime>

namespace mmfree {

ModelWatch::ModelWatch(const LM& lm, const ParamStore& params, const Optimizer& optimizer, const RunConfig& config,
                       const Group& group, Reporter& reporter)
    : lm_(lm),
      config_(config),
      leads_(group.rank() == 0),
      reporter_(reporter),
      telemetry_(lm, params, optimizer, config, group) {}

void ModelWatch::start(int64_t step, const std::string& metrics, const std::string& samples, int64_t resume_step,
                       const std::optional<Tokenizer>& tokenizer) {
  telemetry_.restart(step);
  if (!leads_) return;
  alarms_.emplace(config_, telemetry_.matrices()).replay(metrics);
  samples_.reset();
  if (config_.train.sample_every > 0) samples_ = std::make_unique<Samples>(config_, tokenizer, samples, resume_step);
}

void ModelWatch::measure(int64_t step, StepRunner& runner) {
  const Metrics line = telemetry_.measure(step, runner.ids(), runner.starts());
  if (!leads_) return;
  reporter_.write(line);
  for (const std::string& alarm : alarms_->judge(line)) {
    reporter_.message(concat("alarm: step ", step, ": ", alarm));
    reporter_.write({{"step", step}, {"alarm", alarm}, {"time", double(std::time(nullptr))}});
  }
}

void ModelWatch::sample(int64_t step, bool last) try {
  if (!samples_ || !samples_->due(step, last)) return;
  const Reporter::Pause not_training(reporter_);
  samples_->write(lm_, step);
} catch (const Error& e) {
  reporter_.message(concat("warning: no samples after step ", step, ": ", e.what()));
}

}  // namespace mmfree
