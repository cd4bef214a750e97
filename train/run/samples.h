#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/text/tokenizer.h"
#include "layers/lm.h"
#include "train/config/config.h"
#include "train/run/metrics.h"

namespace mmfree {

/// Texts that a model writes while it is trained: lines {"step": N, "prompt": TEXT, "text": TEXT} of samples.jsonl.
/// They depend on the weights and the configuration alone: the seed is fixed, each prompt has a number.
class Samples {
 public:
  /// Keeps the lines of `path` up to `resume_step`, as MetricsWriter does. `config` must outlive it.
  /// @throws ConfigError without a tokenizer, or for an empty prompt where documents have no mark at their beginning;
  /// what MetricsWriter throws
  Samples(const RunConfig& config, const std::optional<Tokenizer>& tokenizer, const std::string& path,
          int64_t resume_step);
  /// Whether texts are due after `step` steps and not there yet. `last`: the run ends with this step.
  bool due(int64_t step, bool last) const;
  /// Writes a text for each prompt; none if a signal came meanwhile. @throws IoError, and what generate throws
  void write(const LM& lm, int64_t step);

 private:
  const RunConfig& config_;
  Tokenizer tokenizer_;
  std::vector<std::string> prompts_;
  std::vector<std::vector<int32_t>> ids_;  ///< of the prompts
  MetricsWriter file_;
};

}  // namespace mmfree
