#pragma once
#include <string>
#include <utility>
#include <vector>

#include "train/config/config.h"
#include "train/inference/evaluate.h"

namespace mmfree {

/// The results of data.eval_sets, by name.
using SetEvaluations = std::vector<std::pair<std::string, Evaluation>>;

/// Checks that shards are evaluated as the model was trained, and hold a token that can be scored. `key` names them.
/// @throws DataError
void require_evaluable(const std::string& key, const TokenShards& shards, const ShardInfo& train);

/// How many tokens of `shards` an evaluation scores that is limited to `limit`, 0: not; those that masks leave out are
/// counted too.
int64_t tokens_scored(const TokenShards& shards, int64_t limit);

/// The shards of data.eval_sets.
class EvalSets {
 public:
  /// @throws as TokenShards and require_evaluable
  EvalSets(const DataConfig& data, const ShardInfo& train);
  /// All sets in their order, until `options.on_progress` returns false.
  SetEvaluations evaluate(const LM& lm, const EvaluateOptions& options) const;
  /// The sum of tokens_scored over the sets.
  int64_t tokens(int64_t limit) const;

 private:
  std::vector<std::pair<std::string, TokenShards>> sets_;
};

}  // namespace mmfree
