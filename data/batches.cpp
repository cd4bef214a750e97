#include "data/batches.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <numeric>
#include <vector>

#include "core/error.h"

namespace mmfree {

namespace {

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

/// A bijection on [0, n) keyed by `key`: a Feistel network on the next even number of bits, applied until the value
/// falls into the range (fewer than 4 times on average).
uint64_t permute(uint64_t i, uint64_t n, uint64_t key) {
  const int half = std::max(1, (int(std::bit_width(n - 1)) + 1) / 2);
  const uint64_t mask = (uint64_t(1) << half) - 1;
  do {
    uint64_t left = i >> half, right = i & mask;
    for (uint64_t round = 0; round < 6; ++round) {
      const uint64_t next = left ^ (mix(right ^ mix(key + round)) & mask);
      left = right;
      right = next;
    }
    i = left << half | right;
  } while (i >= n);
  return i;
}

}  // namespace

Batches::Batches(const Corpus& corpus, const BatchOptions& options)
    : corpus_(corpus),
      options_(options),
      mixture_(options.stages.empty() ? std::vector<Mixture::Stage>{{0, {1}}} : options.stages) {
  MMFREE_CHECK(ConfigError, options.seq_len > 0, "batches: sequence length ", options.seq_len, ", expected 1 or more");
  for (const TokenShards& source : corpus.sources()) {
    const int64_t targets = source.total_tokens() - 1, least = std::max<int64_t>(1, options.tracks) * options.seq_len;
    MMFREE_CHECK(DataError, targets >= least, "the corpus has a source of ", source.total_tokens(),
                 " tokens, fewer than one window of ", options.seq_len + 1, options.tracks > 0 ? " per row" : "",
                 "; give more data or a shorter sequence length");
    windows_.push_back(targets / options.seq_len);
  }
}

int64_t Batches::windows() const { return std::accumulate(windows_.begin(), windows_.end(), int64_t(0)); }

double Batches::epochs(int64_t samples) const {
  const std::vector<int64_t> taken = mixture_.taken(samples);
  double most = 0;
  for (size_t s = 0; s < windows_.size(); ++s) most = std::max(most, double(taken[s]) / double(windows_[s]));
  return most;
}

Batches::Window Batches::window_of(int64_t sample) const {
  if (options_.tracks > 0) return window_in_track(sample);
  const auto [source, index] = mixture_.place(sample);
  const int64_t windows = windows_[source];
  if (!options_.shuffle) return {source, index % windows};
  const uint64_t key = mix(mix(options_.seed + source) ^ uint64_t(index / windows));
  return {source, int64_t(permute(uint64_t(index % windows), uint64_t(windows), key))};
}

Batches::Window Batches::window_in_track(int64_t sample) const {
  const int64_t length = windows_[0] / options_.tracks;  // of a track
  const int64_t track = sample % options_.tracks, at = sample / options_.tracks % length;
  return {0, track * length + at, at > 0};
}

/// Where documents start, and where the state of another sequence would come in.
void Batches::mark_starts(const Window& window, uint8_t* starts) const {
  std::fill_n(starts, options_.seq_len, uint8_t(0));
  if (!window.goes_on) starts[0] = 1;
  if (!options_.reset_state) return;
  const int64_t begin = window.number * options_.seq_len;
  for (const DocumentPart& part : corpus_.sources()[window.source].documents(begin, options_.seq_len))
    if (part.begin >= 0) starts[part.begin] = 1;
}

void Batches::read(int64_t first, int64_t count, const BatchView& to) const {
  MMFREE_CHECK(Error, first >= 0 && count >= 0 && first <= std::numeric_limits<int64_t>::max() - count,
               "batches: sample ", first, " is out of range");
  const int64_t length = options_.seq_len;
  std::vector<int32_t> tokens(static_cast<size_t>(length + 1));
  for (int64_t i = 0; i < count; ++i) {
    const Window window = window_of(first + i);
    const TokenShards& source = corpus_.sources()[window.source];
    const int64_t begin = window.number * length;
    int32_t* targets = to.targets + i * length;
    source.read(begin, length + 1, tokens.data());
    std::copy_n(tokens.data(), length, to.inputs + i * length);
    std::copy_n(tokens.data() + 1, length, targets);
    source.ignore_unscored(begin + 1, length, targets);
    if (to.starts) mark_starts(window, to.starts + i * length);
  }
}

}  // namespace mmfree
