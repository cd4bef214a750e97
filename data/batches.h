#pragma once
#include <cstdint>
#include <vector>

#include "core/ops/head_loss.h"
#include "data/corpus.h"
#include "data/mixture.h"

namespace mmfree {

struct BatchOptions {
  int64_t seq_len = 0;  ///< tokens per sample
  uint64_t seed = 0;
  bool shuffle = true;
  std::vector<Mixture::Stage> stages = {};  ///< weights of the sources; empty: there is one source
  bool reset_state = false;                 ///< samples say where documents start
  int64_t tracks =
      0;  ///< above 0: sample s goes on where sample s − tracks ended, so there are so many parallel tracks
};

/// Where read() puts samples: [samples, seq_len] each.
struct BatchView {
  int32_t *inputs = nullptr, *targets = nullptr;  ///< a target that the shard's mask does not score is kIgnoreTarget
  uint8_t* starts = nullptr;  ///< 1 where the recurrent state is to be forgotten before the token; may be null
};

/// Divides each source into windows of seq_len + 1 tokens with stride seq_len. The inputs of a sample are the first
/// seq_len tokens of its window, the targets the last seq_len. The window of a sample is a pure function of (seed,
/// sample number), computed in O(1). So there is no state to save, and the order of samples does not depend on the
/// batch size: a batch is a range of samples.
///
/// The mixture says which source a sample comes from, and as its how-manieth. Sample i of a source belongs to its epoch
/// i / windows; each epoch visits all whole windows once: in order, or shuffled by a permutation of its own (a keyed
/// Feistel network with cycle walking). With `tracks` the only source is cut into as many tracks of consecutive
/// windows, and there is no shuffling.
class Batches {
 public:
  /// Keeps a reference to `corpus`.
  /// @throws ConfigError for sizes below 1, DataError if a source has fewer tokens than one window, or one per track
  Batches(const Corpus& corpus, const BatchOptions& options);

  /// A window of a source.
  struct Window {
    size_t source = 0;
    int64_t number = 0;
    bool goes_on = false;  ///< where the sample before it in its track ended
    bool operator==(const Window&) const = default;
  };
  Window window_of(int64_t sample) const;
  /// Windows of all sources together.
  int64_t windows() const;
  /// How often the source that was seen most has been seen, after so many samples.
  double epochs(int64_t samples) const;

  /// Reads samples [first, first + count). @throws what TokenShards::read does
  void read(int64_t first, int64_t count, const BatchView& to) const;
  bool has_starts() const { return options_.reset_state || options_.tracks > 0; }

 private:
  Window window_in_track(int64_t sample) const;
  void mark_starts(const Window& window, uint8_t* starts) const;

  const Corpus& corpus_;
  BatchOptions options_;
  Mixture mixture_;
  std::vector<int64_t> windows_;  // of each source
};

}  // namespace mmfree
