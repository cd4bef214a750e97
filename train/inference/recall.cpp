#include "train/inference/recall.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "core/rng.h"

namespace mmfree {
namespace {

/// The numbers of one item.
class Draws {
 public:
  Draws(const RecallOptions& options, int64_t distance, int64_t item)
      : random_(options.seed, uint64_t(distance), "recall"), next_(uint64_t(item) << 32) {}
  /// Uniform in 0..n−1.
  size_t below(size_t n) { return size_t(random_.uniform(next_++) * double(n)); }
  /// Puts `count` random elements at the front, in random order.
  template <class T>
  void shuffle(std::vector<T>& all, size_t count) {
    for (size_t i = 0; i < count; ++i) std::swap(all[i], all[i + below(all.size() - i)]);
  }

 private:
  RandomStream random_;
  uint64_t next_;
};

std::vector<int32_t> tokens_of_text(const Model& model) {
  std::vector<int32_t> ids;
  if (!model.tokenizer) {
    ids.resize(size_t(model.config.vocab_size));
    std::iota(ids.begin(), ids.end(), 0);
    return ids;
  }
  for (int32_t id = 0; id < model.tokenizer->vocab_size(); ++id)
    if (model.tokenizer->byte_length(id) > 0) ids.push_back(id);
  return ids;
}

TaskItem recall_item(Draws draws, std::vector<int32_t> pool, const std::vector<int32_t>& before, int64_t distance) {
  constexpr size_t kChoices = 4;
  const size_t pairs = size_t(distance / 2);
  draws.shuffle(pool, 2 * pairs);
  const int32_t *keys = pool.data(), *values = keys + pairs;
  std::vector<int32_t> context = before;
  for (size_t i = 0; i < pairs; ++i) context.insert(context.end(), {keys[i], values[i]});
  context.push_back(keys[0]);
  std::vector<int32_t> choices(values + 1, values + pairs);
  draws.shuffle(choices, kChoices - 1);
  TaskItem item;
  item.gold = int64_t(draws.below(kChoices));
  choices.insert(choices.begin() + item.gold, values[0]);
  for (size_t c = 0; c < kChoices; ++c) {
    item.choices.push_back({context, 1});
    item.choices.back().tokens.push_back(choices[c]);
  }
  return item;
}

}  // namespace

std::vector<Task> recall_tasks(const Model& model, const RecallOptions& options) {
  const std::vector<int32_t> pool = tokens_of_text(model);
  const std::vector<int32_t> before = model.tokenizer ? model.encoder().opening() : std::vector<int32_t>();
  std::vector<Task> tasks;
  for (int64_t distance = 16; distance <= std::min(options.longest, int64_t(pool.size())); distance *= 2) {
    Task task{concat("recall_", distance), {Metric::acc, Metric::exact_match, Metric::logprob}, {}};
    for (int64_t i = 0; i < options.items; ++i)
      task.items.push_back(recall_item({options, distance, i}, pool, before, distance));
    tasks.push_back(std::move(task));
  }
  MMFREE_CHECK(DataError, !tasks.empty(), "recall: a window of ", options.longest, " and a vocabulary of ", pool.size(),
               " tokens of text are too small; both must be at least 16");
  return tasks;
}

}  // namespace mmfree
