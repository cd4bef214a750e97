#include "data/corpus.h"

#include "core/error.h"
#include "core/system/hash.h"

namespace mmfree {

Corpus::Corpus(const DataConfig& config) {
  if (config.sources.empty()) sources_.emplace_back(config.train);
  for (const DataSource& source : config.sources) {
    sources_.emplace_back(source.shards);
    const ShardInfo &first = info(), &other = sources_.back().info();
    MMFREE_CHECK(DataError, other == first, "data.sources: the shards of ", quote(source.name), " and ",
                 quote(config.sources[0].name), " differ in tokenizer, framing or split; prepare them alike");
  }
}

int64_t Corpus::total_tokens() const {
  int64_t sum = 0;
  for (const TokenShards& source : sources_) sum += source.total_tokens();
  return sum;
}

int64_t Corpus::documents() const {
  int64_t sum = 0;
  for (const TokenShards& source : sources_) sum += source.documents();
  return sum;
}

std::string Corpus::fingerprint() const {
  if (sources_.size() == 1) return sources_[0].fingerprint();
  std::string all;
  for (const TokenShards& source : sources_) all += source.fingerprint();
  return hex16(hash64(all));
}

}  // namespace mmfree
