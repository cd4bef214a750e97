#include "train/inference/score.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>

#include "core/parallel.h"
#include "train/inference/generate.h"

namespace mmfree {
namespace {

/// Scores target i under row i of logits [N, V] on the host.
TokenScores score_rows(const Tensor& logits, std::span<const int32_t> targets) {
  const int64_t n = int64_t(targets.size()), vocab = logits.dim(1);
  for (const int32_t target : targets)
    MMFREE_CHECK(DataError, target >= 0 && target < vocab, "score: token id ", target, " is outside 0..", vocab - 1);
  TokenScores scores{std::vector<double>(size_t(n)), std::vector<bool>(size_t(n))};
  std::vector<int64_t> best(size_t(n), 0);
  const float* x = logits.data<float>();
  parallel_for(n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* row = x + r * vocab;
      best[size_t(r)] = std::max_element(row, row + vocab) - row;
      double sum = 0;
      for (int64_t v = 0; v < vocab; ++v) sum += std::exp(double(row[v]) - double(row[best[size_t(r)]]));
      scores.logprobs[size_t(r)] = double(row[targets[size_t(r)]]) - double(row[best[size_t(r)]]) - std::log(sum);
    }
  });
  for (int64_t r = 0; r < n; ++r) {
    if (std::isnan(scores.logprobs[size_t(r)])) most_likely(x + r * vocab, vocab);  // says what is wrong
    scores.greedy[size_t(r)] = best[size_t(r)] == targets[size_t(r)];
  }
  return scores;
}

/// Requests with the same inputs, and so the same logits: all but their last tokens are equal.
using RequestGroup = std::vector<const Request*>;

int64_t inputs_of(const Request& r) { return int64_t(r.tokens.size()) - 1; }

bool same_inputs(const Request& a, const Request& b) {
  return a.scored == b.scored && std::equal(a.tokens.begin(), a.tokens.end() - 1, b.tokens.begin(), b.tokens.end() - 1);
}

/// The longest first: the most memory is needed at once, and an estimate of the time left is never too low.
std::vector<RequestGroup> grouped(const std::vector<Request>& requests) {
  RequestGroup order;
  for (const Request& r : requests) order.push_back(&r);
  std::stable_sort(order.begin(), order.end(), [](const Request* a, const Request* b) {
    return inputs_of(*a) != inputs_of(*b) ? inputs_of(*a) > inputs_of(*b) : a->tokens < b->tokens;
  });
  std::vector<RequestGroup> groups;
  for (const Request* r : order) {
    if (groups.empty() || !same_inputs(*groups.back().front(), *r)) groups.emplace_back();
    groups.back().push_back(r);
  }
  return groups;
}

/// One forward pass over sequences that are padded at their ends, where nothing is scored.
void score_batch(const LM& lm, std::span<const RequestGroup> batch, const Request* first,
                 std::vector<Likelihood>& results) {
  const int64_t steps = inputs_of(*batch[0][0]), rows = int64_t(batch.size());
  Tensor ids = Tensor::zeros({rows * steps}, DType::i32);
  std::vector<RowRange> positions;
  for (int64_t b = 0; b < rows; ++b) {
    const Request& r = *batch[size_t(b)][0];
    std::copy_n(r.tokens.begin(), inputs_of(r), ids.mut<int32_t>() + b * steps);
    const int64_t end = b * steps + inputs_of(r);
    positions.push_back({end - r.scored, end});
  }
  const Tensor logits = host_f32(lm.logits_at(ids.to(lm.device()), rows, positions));
  int64_t at = 0;
  for (const RequestGroup& group : batch) {
    const int64_t scored = group[0]->scored;
    for (const Request* r : group) {
      const TokenScores s = score_rows(logits.slice(at, at + scored), std::span(r->tokens).last(size_t(scored)));
      Likelihood& result = results[size_t(r - first)];
      for (size_t i = 0; i < s.logprobs.size(); ++i) {
        result.logprob += s.logprobs[i];
        result.greedy = result.greedy && s.greedy[i];
      }
    }
    at += scored;
  }
}

/// Each result from the rank that has computed it, to all.
void gather(Group& group, const std::vector<int>& owners, std::vector<Likelihood>& results) {
  struct Plain {
    double logprob;
    int64_t greedy;
  };
  std::vector<Plain> mine, all(results.size() * size_t(group.size()));
  for (const Likelihood& r : results) mine.push_back({r.logprob, r.greedy});
  group.all_gather(mine.data(), mine.size() * sizeof(Plain), all.data());
  for (size_t i = 0; i < results.size(); ++i) {
    const Plain& p = all[size_t(owners[i]) * results.size() + i];
    results[i] = {p.logprob, p.greedy != 0};
  }
}

}  // namespace

TokenScores score(const LM& lm, const std::vector<int32_t>& tokens) {
  TokenScores scores;
  DecodeState state(lm.config().num_hidden_layers);
  const int64_t count = int64_t(tokens.size()) - 1;
  constexpr int64_t kRows = 512;
  for (int64_t begin = 0; begin < count; begin += kRows) {
    const int64_t rows = std::min(kRows, count - begin);
    const Tensor logits = host_f32(lm.logits(Tensor::from({rows}, tokens.data() + begin).to(lm.device()), {1, &state}));
    const TokenScores more = score_rows(logits, std::span(tokens).subspan(size_t(begin + 1), size_t(rows)));
    scores.logprobs.insert(scores.logprobs.end(), more.logprobs.begin(), more.logprobs.end());
    scores.greedy.insert(scores.greedy.end(), more.greedy.begin(), more.greedy.end());
  }
  return scores;
}

std::vector<Likelihood> likelihoods(const LM& lm, const std::vector<Request>& requests,
                                    const LikelihoodOptions& options) {
  std::vector<Likelihood> results(requests.size());
  const std::vector<RequestGroup> groups = grouped(requests);
  int64_t total = 0, done = 0;
  for (const RequestGroup& g : groups) total += inputs_of(*g[0]);
  // Enough tokens to fill the kernels; few enough logits (f32, on the host) to stay below half a gigabyte.
  const int64_t most_tokens = options.batch_tokens > 0     ? options.batch_tokens
                              : lm.device() == Device::cpu ? 4096
                                                           : 32768;
  const int64_t most_scored = (int64_t(1) << 27) / lm.config().vocab_size;
  const int ranks = options.group ? options.group->size() : 1, rank = options.group ? options.group->rank() : 0;
  std::vector<int> owners(requests.size());
  int owner = 0;  // of a batch: the ranks take turns
  for (size_t begin = 0; begin < groups.size(); owner = (owner + 1) % ranks) {
    const int64_t steps = inputs_of(*groups[begin][0]);
    size_t end = begin;
    int64_t scored = 0;
    do {
      scored += groups[end][0]->scored;
      done += inputs_of(*groups[end++][0]);
    } while (end < groups.size() && int64_t(end - begin + 1) * steps <= most_tokens &&
             scored + groups[end][0]->scored <= most_scored);
    const std::span batch = std::span(groups).subspan(begin, end - begin);
    if (owner == rank) score_batch(lm, batch, requests.data(), results);
    for (const RequestGroup& same : batch)
      for (const Request* r : same) owners[size_t(r - requests.data())] = owner;
    begin = end;
    if (options.on_progress) options.on_progress(double(done) / double(total));
  }
  if (ranks > 1) gather(*options.group, owners, results);
  return results;
}

}  // namespace mmfree
