#include "data/mixture.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace mmfree {
namespace {

/// Samples of each source in one pattern: shares rounded down, at least 1 of each, and the rest to those that lost
/// most.
std::vector<int64_t> counts_of(const std::vector<double>& weights) {
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<double> due;  // how much each is short of its share
  std::vector<int64_t> counts;
  for (const double w : weights) {
    const double share = w / sum * double(Mixture::kPattern);
    counts.push_back(w > 0 ? std::max<int64_t>(1, int64_t(share)) : 0);
    due.push_back(share - double(counts.back()));
  }
  int64_t left = Mixture::kPattern - std::accumulate(counts.begin(), counts.end(), int64_t(0));
  for (; left > 0; --left) {
    const size_t i = size_t(std::max_element(due.begin(), due.end()) - due.begin());
    ++counts[i], --due[i];
  }
  for (; left < 0; ++left) --*std::max_element(counts.begin(), counts.end());
  return counts;
}

}  // namespace

/// Gives each sample to the source whose next one is due first: its number k is due at (k + 1/2) / count.
Mixture::Pattern Mixture::pattern_of(const std::vector<double>& weights) {
  Pattern p;
  p.per_turn = counts_of(weights);
  std::vector<std::pair<double, uint16_t>> due;
  for (size_t s = 0; s < p.per_turn.size(); ++s)
    for (int64_t k = 0; k < p.per_turn[s]; ++k) due.emplace_back((double(k) + 0.5) / double(p.per_turn[s]), s);
  std::sort(due.begin(), due.end());
  std::vector<uint16_t> rank(weights.size(), 0);
  for (const auto& [at, source] : due) {
    p.source.push_back(source);
    p.rank.push_back(rank[source]++);
  }
  return p;
}

Mixture::Mixture(const std::vector<Stage>& stages) {
  for (const Stage& stage : stages) {
    Pattern p = pattern_of(stage.weights);
    p.begin = stage.begin;
    p.before = stages_.empty() ? std::vector<int64_t>(stage.weights.size(), 0) : taken(stages_.back(), stage.begin);
    stages_.push_back(std::move(p));
  }
}

const Mixture::Pattern& Mixture::stage_of(int64_t sample) const {
  const auto after = std::upper_bound(stages_.begin(), stages_.end(), sample,
                                      [](int64_t s, const Pattern& stage) { return s < stage.begin; });
  return *std::prev(after);
}

Mixture::Place Mixture::place(int64_t sample) const {
  const Pattern& stage = stage_of(sample);
  const int64_t turn = (sample - stage.begin) / kPattern;
  const auto at = size_t((sample - stage.begin) % kPattern);
  const size_t source = stage.source[at];
  return {source, stage.before[source] + turn * stage.per_turn[source] + stage.rank[at]};
}

std::vector<int64_t> Mixture::taken(const Pattern& stage, int64_t sample) {
  const int64_t turn = (sample - stage.begin) / kPattern, rest = (sample - stage.begin) % kPattern;
  std::vector<int64_t> sum = stage.before;
  for (size_t s = 0; s < sum.size(); ++s) sum[s] += turn * stage.per_turn[s];
  for (int64_t i = 0; i < rest; ++i) ++sum[stage.source[size_t(i)]];
  return sum;
}

std::vector<int64_t> Mixture::taken(int64_t sample) const { return taken(stage_of(sample), sample); }

}  // namespace mmfree
