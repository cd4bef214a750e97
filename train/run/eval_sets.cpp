#include "train/run/eval_sets.h"

#include <algorithm>

#include "core/error.h"

namespace mmfree {

void require_evaluable(const std::string& key, const TokenShards& shards, const ShardInfo& train) {
  const ShardInfo& info = shards.info();
  MMFREE_CHECK(DataError, info.tokenizer_hash == train.tokenizer_hash && info.framing == train.framing, key,
               " and the training shards differ in tokenizer or framing; prepare them together");
  MMFREE_CHECK(DataError, tokens_scored(shards, 0) > 0, key, ": its shards hold ", shards.total_tokens(),
               " tokens, expected at least 2: one to begin with and one to score; name others");
}

int64_t tokens_scored(const TokenShards& shards, int64_t limit) {
  const int64_t all = std::max<int64_t>(0, shards.total_tokens() - 1);
  return limit > 0 ? std::min(limit, all) : all;
}

EvalSets::EvalSets(const DataConfig& data, const ShardInfo& train) {
  for (const EvalSet& set : data.eval_sets) {
    sets_.emplace_back(set.name, TokenShards(set.shards));
    require_evaluable("data.eval_sets " + quote(set.name), sets_.back().second, train);
  }
}

SetEvaluations EvalSets::evaluate(const LM& lm, const EvaluateOptions& options) const {
  SetEvaluations all;
  bool go_on = true;
  EvaluateOptions with = options;
  with.on_progress = [&](int64_t done, int64_t total) {
    return go_on = !options.on_progress || options.on_progress(done, total);
  };
  for (const auto& [name, shards] : sets_)
    if (go_on) all.emplace_back(name, mmfree::evaluate(lm, TokenSource::shards(shards), with));
  return all;
}

int64_t EvalSets::tokens(int64_t limit) const {
  int64_t sum = 0;
  for (const auto& [name, shards] : sets_) sum += tokens_scored(shards, limit);
  return sum;
}

}  // namespace mmfree
