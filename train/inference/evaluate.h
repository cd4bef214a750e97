#pragma once
#include <functional>
#include <vector>

#include "data/token_shards.h"
#include "layers/lm.h"

namespace mmfree {

/// Tokens to score, wherever they are: in shards or in memory.
struct TokenSource {
  int64_t tokens = 0;
  std::function<void(int64_t offset, int64_t count, int32_t* out)> read;
  std::vector<int32_t> piece_bytes;  ///< UTF-8 bytes per id; empty: unknown
  int bos_id = -1;
  bool dummy_prefix = false;  ///< the first piece after bos stands for one space that is not in the text
  /// As TokenShards::ignore_unscored; empty: all tokens are scored.
  std::function<void(int64_t offset, int64_t count, int32_t* targets)> ignore_unscored = nullptr;

  static TokenSource shards(const TokenShards& shards);
  /// Documents, each preceded by bos if the tokenizer has one.
  static TokenSource texts(const Tokenizer& tokenizer, const std::vector<std::string>& documents);
};

/// Sums over scored tokens; the figures people compare are derived from them.
struct Evaluation {
  double nats = 0;         ///< Σ −ln p
  int64_t tokens = 0;      ///< scored: every token but the first of the source and those that its mask leaves out
  double text_nats = 0;    ///< the same over tokens that stand for text
  int64_t text_bytes = 0;  ///< UTF-8 bytes of those

  double loss() const;           ///< nats per token
  double perplexity() const;     ///< e^loss
  double bits_per_byte() const;  ///< text_nats / (ln 2 · text_bytes); NaN when bytes are unknown
};

struct EvaluateOptions {
  int64_t seq_len = 256;  ///< tokens per window; windows do not overlap and each starts from the empty state
  int64_t limit = 0;      ///< score at most so many tokens (whole windows); 0: all
  std::function<bool(int64_t done, int64_t total)> on_progress;  ///< returns false to stop early
};

/// Scores the source in windows of seq_len inputs, in order: token-weighted, the same bits for any thread count.
/// @throws DataError if there is no token to score, and what reading throws
Evaluation evaluate(const LM& lm, const TokenSource& source, const EvaluateOptions& options);

}  // namespace mmfree
