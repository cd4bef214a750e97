#pragma once
#include <cstdint>

#include "core/ops/head_loss.h"
#include "data/token_shards.h"

namespace mmfree {

struct BatchOptions {
  int64_t seq_len = 0;     ///< tokens per row
  int64_t batch_size = 0;  ///< rows per step
  uint64_t seed = 0;
  bool shuffle = true;
};

/// Divides a corpus into windows of seq_len + 1 tokens with stride seq_len. The inputs of a row are the first seq_len
/// tokens of its window, the targets the last seq_len. The window of a row is a pure function of (seed, step, row),
/// computed in O(1). So there is no state to save, and the order of samples does not depend on the batch size.
///
/// Sample s = step * batch_size + row belongs to epoch s / windows(); each epoch visits all whole windows once: in
/// order, or shuffled by a permutation of its own (a keyed Feistel network with cycle walking).
class Batches {
 public:
  /// Keeps a reference to `shards`.
  /// @throws ConfigError for sizes below 1, DataError if the corpus has fewer tokens than one window
  Batches(const TokenShards& shards, const BatchOptions& options);

  int64_t windows() const { return windows_; }
  /// The window that a sample reads.
  int64_t window_of(int64_t sample) const;

  /// Fills rows [row_begin, row_end) of the step's batch: inputs and targets [row_end - row_begin, seq_len]. A target
  /// that the shard's mask does not score is kIgnoreTarget.
  /// @throws what TokenShards::read does
  void read(int64_t step, int64_t row_begin, int64_t row_end, int32_t* inputs, int32_t* targets) const;

 private:
  int64_t sample(int64_t step, int64_t row) const;

  const TokenShards& shards_;
  BatchOptions options_;
  int64_t windows_ = 0;
};

}  // namespace mmfree
