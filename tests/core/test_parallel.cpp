#include <gtest/gtest.h>
#include <omp.h>

#include <mutex>
#include <set>

#include "core/parallel.h"

using namespace mmfree;

namespace {

using Ranges = std::set<std::pair<int64_t, int64_t>>;

Ranges ranges_of(int64_t n, int64_t grain) {
  std::mutex mutex;
  Ranges ranges;
  parallel_for(n, grain, [&](int64_t begin, int64_t end) {
    std::lock_guard lock(mutex);
    ranges.emplace(begin, end);
  });
  return ranges;
}

}  // namespace

TEST(Parallel, CoversEveryItemOnceWithTheSameRangesForAnyThreads) {
  const int saved = omp_get_max_threads();
  for (int64_t n : {0, 1, 63, 64, 65, 1000})
    for (int64_t grain : {1, 64, 1000, 5000}) {
      omp_set_num_threads(1);
      const Ranges expected = ranges_of(n, grain);
      int64_t next = 0;
      for (auto [begin, end] : expected) {
        EXPECT_EQ(next, begin);
        EXPECT_LE(end - begin, grain);
        next = end;
      }
      EXPECT_EQ(n, next);
      for (int threads : {2, 3, 5}) {
        omp_set_num_threads(threads);
        EXPECT_EQ(expected, ranges_of(n, grain));
      }
    }
  omp_set_num_threads(saved);
}

TEST(Parallel, OrderedSumHasTheSameBitsForAnyThreads) {
  const int saved = omp_get_max_threads();
  const auto sum = [] {
    return ordered_sum(100001, 7, [](int64_t begin, int64_t end) {
      double s = 0;
      for (int64_t i = begin; i < end; ++i) s += 1.0 / double(i + 1);
      return s;
    });
  };
  omp_set_num_threads(1);
  const double first = sum();
  EXPECT_NEAR(12.090156129863, first, 1e-9);  // H(100001) = ln(100001) + 0.5772156649 + 1/200002
  for (int threads : {2, 3, 5}) {
    omp_set_num_threads(threads);
    EXPECT_EQ(first, sum());
  }
  omp_set_num_threads(saved);
  EXPECT_EQ(0, ordered_sum(0, 7, [](int64_t, int64_t) { return 1.0; }));
}
