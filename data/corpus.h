#pragma once
#include <string>
#include <vector>

#include "data/data_config.h"
#include "data/token_shards.h"

namespace mmfree {

/// The sources that a run trains on, all prepared with the same tokenizer and framing. Not for concurrent use.
class Corpus {
 public:
  /// Those of data.sources, or data.train as the only one. @throws as TokenShards, DataError if they differ
  explicit Corpus(const DataConfig& config);
  explicit Corpus(TokenShards only) { sources_.push_back(std::move(only)); }

  const std::vector<TokenShards>& sources() const { return sources_; }
  const ShardInfo& info() const { return sources_[0].info(); }
  int64_t total_tokens() const;
  int64_t documents() const;
  /// As TokenShards::fingerprint, over all sources.
  std::string fingerprint() const;

 private:
  std::vector<TokenShards> sources_;
};

}  // namespace mmfree
