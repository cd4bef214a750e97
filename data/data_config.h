#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "data/text/framing.h"

namespace mmfree {

/// The longest sequence that may be trained on.
inline constexpr int64_t kMaxSeqLen = int64_t(1) << 20;

/// One of several sources of training tokens.
struct DataSource {
  std::string name;
  std::vector<std::string> shards;  ///< as DataConfig::train
  double weight = 1;                ///< share of the samples, relative to the other sources
  bool operator==(const DataSource&) const = default;
};

/// From a number of trained tokens on, the sources have other weights.
struct DataStage {
  int64_t from_tokens = 0;
  std::vector<double> weights;  ///< in the order of the sources
  bool operator==(const DataStage&) const = default;
};

/// Tokens that a run is evaluated on besides its validation shards.
struct EvalSet {
  std::string name;                 ///< of the metrics eval/NAME/loss, ppl and bpb
  std::vector<std::string> shards;  ///< as DataConfig::train
  bool operator==(const EvalSet&) const = default;
};

/// Which tokens a run reads (section `data`).
struct DataConfig {
  std::vector<std::string> train;   ///< token shards: files, globs or directories, relative to the working directory
  std::vector<DataSource> sources;  ///< several sources in place of `train`
  std::vector<DataStage> stages;    ///< ascending; before the first one the sources' own weights hold
  std::vector<std::string> valid;   ///< the same for evaluation; empty: no evaluation
  std::string tokenizer;            ///< SentencePiece model for val/bpb and samples; empty: none
  int64_t seq_len = 256;            ///< tokens predicted per sequence
  bool shuffle = true;              ///< visit sequences in a seeded random order, another one in each epoch
  std::optional<Framing> framing;   ///< nullopt: as the shards say; a given one must be theirs
  bool reset_state = false;         ///< forget the recurrent state where a document starts
  bool carry_state = false;         ///< each row goes on where it ended in the step before, with its state; in order
  std::vector<EvalSet> eval_sets;   ///< evaluated whenever `valid` is
};

}  // namespace mmfree
