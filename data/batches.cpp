#include "data/batches.h"

#include <algorithm>
#include <bit>
#include <limits>
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

Batches::Batches(const TokenShards& shards, const BatchOptions& options) : shards_(shards), options_(options) {
  MMFREE_CHECK(ConfigError, options.seq_len > 0, "batches: sequence length ", options.seq_len, ", expected 1 or more");
  MMFREE_CHECK(ConfigError, options.batch_size > 0, "batches: batch size ", options.batch_size, ", expected 1 or more");
  const int64_t targets = shards.total_tokens() - 1;
  MMFREE_CHECK(DataError, targets >= options.seq_len, "the corpus has ", shards.total_tokens(),
               " tokens, fewer than one window of ", options.seq_len + 1,
               "; give more data or a shorter sequence length");
  windows_ = targets / options.seq_len;
}

int64_t Batches::sample(int64_t step, int64_t row) const {
  const int64_t last = std::numeric_limits<int64_t>::max() / options_.batch_size - 1;
  MMFREE_CHECK(Error, step >= 0 && step <= last, "batches: step ", step, " is out of range");
  return step * options_.batch_size + row;
}

int64_t Batches::window_of(int64_t sample) const {
  if (!options_.shuffle) return sample % windows_;
  const uint64_t key = mix(mix(options_.seed) ^ uint64_t(sample / windows_));
  return int64_t(permute(uint64_t(sample % windows_), uint64_t(windows_), key));
}

void Batches::read(int64_t step, int64_t row_begin, int64_t row_end, int32_t* inputs, int32_t* targets) const {
  MMFREE_CHECK(Error, row_begin >= 0 && row_begin <= row_end && row_end <= options_.batch_size, "batches: rows [",
               row_begin, ", ", row_end, ") of a batch of ", options_.batch_size);
  const int64_t length = options_.seq_len;
  std::vector<int32_t> window(static_cast<size_t>(length + 1));
  for (int64_t row = row_begin; row < row_end; ++row, inputs += length, targets += length) {
    const int64_t begin = window_of(sample(step, row)) * length;
    shards_.read(begin, length + 1, window.data());
    std::copy_n(window.data(), length, inputs);
    std::copy_n(window.data() + 1, length, targets);
    shards_.ignore_unscored(begin + 1, length, targets);
  }
}

}  // namespace mmfree
