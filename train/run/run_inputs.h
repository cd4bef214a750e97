#pragma once
#include <optional>

#include "data/corpus.h"
#include "data/text/tokenizer.h"
#include "train/config/config.h"
#include "train/run/eval_sets.h"

namespace mmfree {

/// The files that a run reads: shards to train and evaluate on, and the tokenizer. Opened, but their tokens are not
/// read.
struct RunInputs {
  /// @throws ConfigError if the model's vocabulary is too small for the training shards, or data.framing is not theirs;
  /// DataError if what is evaluated or the tokenizer does not fit them, or there is no token to score; and as Corpus,
  /// TokenShards and Tokenizer::load
  explicit RunInputs(const RunConfig& config);

  Corpus corpus;
  std::optional<TokenShards> valid;
  EvalSets eval_sets;
  std::optional<Tokenizer> tokenizer;  ///< that data.tokenizer names
};

}  // namespace mmfree
