// The loop that measures memory reads every word once, with vectors of either width; how fast is not tested.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "core/cpu/wide.h"
#include "core/read_rate.h"

namespace mmfree {
namespace {

void every_word_counts() {
  constexpr int64_t kPart = int64_t(1) << 15;
  std::vector<uint64_t> words(3 * kPart + 5);
  for (size_t i = 0; i < words.size(); ++i) words[i] = (i + 1) * 0x9e3779b97f4a7c15u;
  for (int64_t n : {int64_t(0), int64_t(1), kPart - 1, kPart, kPart + 1, 3 * kPart, int64_t(words.size())})
    EXPECT_EQ(std::accumulate(words.begin(), words.begin() + n, uint64_t(0)), sum_of_words(words.data(), n)) << n;
}

TEST(ReadRate, EveryWordCountsOnce) {
  every_word_counts();
#if MMFREE_WIDE_VECTORS
  cpu::wide_vectors_allowed = false;
  every_word_counts();
  cpu::wide_vectors_allowed = true;
#endif
}

TEST(ReadRate, IsANumberForAnySize) {
  for (int64_t bytes : {int64_t(0), int64_t(1000), int64_t(3) << 20})
    for (int threads : {1, 3}) {
      const double rate = host_read_rate(bytes, threads);
      EXPECT_TRUE(std::isfinite(rate) && rate > 0) << rate;
    }
}

}  // namespace
}  // namespace mmfree
