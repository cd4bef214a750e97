#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "train/config/config.h"
#include "train/watch/run_metrics.h"

namespace mmfree {

/// What a run folder tells of its run. It may come from anywhere: what cannot be read is left out, with a note.
struct RunData {
  /// The values of a JSON object as text, by key.
  using Facts = std::vector<std::pair<std::string, std::string>>;
  /// Numbers of one file that `mmfree eval --json` wrote: "loss", "sets/NAME/loss", "tasks/NAME/acc", ...
  struct Evaluated {
    std::string file;
    std::vector<std::pair<std::string, double>> numbers;
  };
  /// A line {"step": N, "prompt": TEXT, "text": TEXT} of samples.jsonl.
  struct Sample {
    int64_t step = 0;
    std::string prompt, text;
  };

  std::string path;  ///< as given, without a slash at the end
  std::string name;  ///< its last part; longer where several runs would have the same (name_apart)
  std::unique_ptr<RunMetrics> metrics;
  std::string config_text;          ///< config.resolved.yaml
  std::optional<RunConfig> config;  ///< if that can be read
  Facts facts;                      ///< run.json
  std::vector<Evaluated> evaluations;
  std::vector<Sample> samples;  ///< the first and the last ones, by step
  std::vector<std::string> notes;
};

/// Reads a run folder, or the folder of a metrics.jsonl that is named itself. @throws MissingError if there is no
/// metrics.jsonl, naming the runs in the folder; DataError, IoError if it cannot be read
RunData read_run(const std::string& path);

/// Lengthens the names of `runs` until they differ.
void name_apart(std::vector<RunData>& runs);

/// For each run the number of its vocabulary: two have the same if their tokenizers are the same or, where one does not
/// tell its tokenizer, if they have as many tokens. Losses per token compare among those alone.
std::vector<int> vocabularies(const std::vector<RunData>& runs);

/// Floating-point operations of training per token; 0 if the configuration is unknown.
double flops_per_token(const RunData& run);

}  // namespace mmfree
