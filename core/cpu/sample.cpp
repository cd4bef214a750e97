#include "core/ops/sample.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "core/parallel.h"
#include "core/rng.h"
#include "core/sampling.h"

namespace mmfree::cpu {
namespace {

struct Token {
  uint32_t distance, id;
  bool operator<(const Token& other) const {
    return distance != other.distance ? distance < other.distance : id < other.id;
  }
};

/// The number of tokens of the first `count` whose masses reach `need`, and their sum.
std::pair<size_t, uint64_t> reached(const std::vector<Token>& order, size_t count, uint64_t need) {
  uint64_t sum = 0;
  size_t n = 0;
  while (n < count && sum < need) sum += token_mass(order[n++].distance);
  return {n, sum};
}

uint64_t mass_of(const std::vector<Token>& order, size_t count) {
  return reached(order, count, std::numeric_limits<uint64_t>::max()).second;
}

uint32_t chosen(const SampleRow& row, std::vector<Token>& order) {
  std::sort(order.begin(), order.end());
  size_t kept = row.top_k ? std::min<size_t>(row.top_k, order.size()) : order.size();
  uint64_t total = mass_of(order, kept);
  if (row.top_p < 1) {
    const auto need = uint64_t(std::ceil(row.top_p * double(total)));
    std::tie(kept, total) = reached(order, kept, std::clamp<uint64_t>(need, 1, total));
  }
  const auto dropped = std::find_if(order.begin(), order.begin() + int64_t(kept),
                                    [&](const Token& t) { return t.distance > row.farthest; });
  kept = size_t(dropped - order.begin());
  total = mass_of(order, kept);
  uint32_t words[4] = {uint32_t(row.index), uint32_t(row.index >> 32), uint32_t(row.stream),
                       uint32_t(row.stream >> 32)};
  philox_rounds(words, uint32_t(row.key), uint32_t(row.key >> 32));
  const uint64_t target = scaled_random(uint64_t(words[0]) << 32 | words[1], total);
  return order[reached(order, kept, target + 1).first - 1].id;
}

}  // namespace

void sample(const SampleArgs& g) {
  parallel_for(g.count, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> logits(size_t(g.vocab));
    for (int64_t r = begin; r < end; ++r) {
      SampleRow& row = g.rows[r];
      uint32_t* seen = g.seen ? g.seen + r * ((g.vocab + 31) / 32) : nullptr;
      bool good = true;
      size_t best = 0;
      for (size_t v = 0; v < logits.size(); ++v) {
        float x = g.logits[r * g.vocab + int64_t(v)];
        good &= x <= std::numeric_limits<float>::max();
        if (seen && seen[v / 32] >> v % 32 & 1) x = x > 0 ? x / row.penalty : x * row.penalty;
        logits[v] = x;
        if (x > logits[best]) best = v;
      }
      g.tokens[r] = -1;
      if (!good || !std::isfinite(logits[best])) continue;
      if (row.per_unit > 0) {
        std::vector<Token> order;
        for (size_t v = 0; v < logits.size(); ++v)
          order.push_back({token_distance(logits[v], logits[best], row.per_unit), uint32_t(v)});
        best = chosen(row, order);
      }
      g.tokens[r] = int32_t(best);
      ++row.index;
      if (seen) seen[best / 32] |= uint32_t(1) << best % 32;
    }
  });
}

}  // namespace mmfree::cpu
