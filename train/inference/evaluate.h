#pragma once
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "core/ranks/group.h"
#include "data/token_shards.h"
#include "layers/lm.h"

namespace mmfree {

/// Tokens to score, wherever they are: in shards or in memory.
struct TokenSource {
  int64_t tokens = 0;
  std::function<void(int64_t offset, int64_t count, int32_t* out)> read;
  /// As TokenShards::ignore_unscored; empty: all tokens are scored.
  std::function<void(int64_t offset, int64_t count, int32_t* targets)> ignore_unscored = nullptr;
  /// As TokenShards::documents; empty: unknown, and then sets and bytes of text are not counted.
  std::function<std::vector<DocumentPart>(int64_t offset, int64_t count)> documents = nullptr;
  std::vector<std::string> sets = {};     ///< as TokenShards::sets
  std::vector<int32_t> piece_bytes = {};  ///< UTF-8 bytes per id
  bool dummy_prefix = false;              ///< a document's first piece stands for one space that is not in the text
  bool bos = false;                       ///< a document's first token is bos, so its first piece is the next one

  static TokenSource shards(const TokenShards& shards);
};

/// Documents as the stream of tokens that the model was trained on: the same numbers as shards of them give. Holds the
/// tokens in memory. `next` stores the next document and returns false at the end; reading stops when `most` tokens can
/// be scored.
TokenSource source_of_texts(const DocumentEncoder& encoder, const std::function<bool(Document*)>& next, int64_t most);

/// Sums over scored tokens; the figures people compare are derived from them.
struct LossSum {
  double nats = 0;         ///< Σ −ln p
  int64_t tokens = 0;      ///< scored
  double text_nats = 0;    ///< the same over tokens that stand for text
  int64_t text_bytes = 0;  ///< UTF-8 bytes of those

  double loss() const;           ///< nats per token
  double perplexity() const;     ///< e^loss
  double bits_per_byte() const;  ///< text_nats / (ln 2 · text_bytes); NaN when bytes are unknown
};

/// The sums over all scored tokens: every token but the first of the source and those that its mask leaves out.
struct Evaluation : LossSum {
  std::vector<std::pair<std::string, LossSum>>
      sets;                        ///< per source set, those with tokens; none if no document names one
  std::vector<LossSum> positions;  ///< entry k: over window positions in position_range(k)
};

/// The positions that entry k of Evaluation::positions covers, first and one past the last: [0, 1), [1, 2), [2, 4),
/// [4, 8), … A position is the number of tokens of the window that the prediction sees, less one.
std::pair<int64_t, int64_t> position_range(size_t k);

struct EvaluateOptions {
  int64_t seq_len = 256;  ///< tokens per window; windows do not overlap and each starts from the empty state
  int64_t limit = 0;      ///< score exactly so many tokens, or all if there are fewer; 0: all
  std::function<bool(int64_t done, int64_t total)> on_progress = nullptr;  ///< returns false to stop early
  bool reset_state = false;  ///< forget the recurrent state where a document starts, as the model was trained
  int64_t batch = 0;         ///< windows per forward pass, at most as many as fill the kernels; 0: so many
  Group* group = nullptr;    ///< ranks that share the forward passes, each with the same model and source; null: alone
};

/// Scores the source in windows of seq_len inputs, in order: token-weighted, the same bits for any number of threads
/// and ranks, and on the CPU for any batch. A long window is computed in pieces that pass the state on, so memory does
/// not grow with it.
/// @throws DataError if there is no token to score, and what reading throws
Evaluation evaluate(const LM& lm, const TokenSource& source, const EvaluateOptions& options);

}  // namespace mmfree
