#pragma once
#include "train/inference/tasks.h"

namespace mmfree {

struct RecallOptions {
  uint64_t seed = 1;
  int64_t items = 100;     ///< per distance
  int64_t longest = 2048;  ///< largest distance in tokens
};

/// Associative recall at distances of 16, 32, 64, … tokens. An item is a list of pairs, key and value, each one random
/// token that stands for text; it ends with its first key again, and the first value should follow:
///   opening  k1 v1  k2 v2  …  kn vn  k1 → v1        distance d = 2n, all of k1 … kn, v1 … vn different
/// The value is compared with three others of the same item, so chance is 1/4. There is a task per distance,
/// "recall_16" and so on, up to `longest` and as far as the vocabulary has d tokens. The items depend on the options,
/// the vocabulary and the opening alone. @throws DataError if there is no distance
std::vector<Task> recall_tasks(const Model& model, const RecallOptions& options);

}  // namespace mmfree
