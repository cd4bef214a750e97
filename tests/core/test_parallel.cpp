#include <gtest/gtest.h>
#include <omp.h>

#include <atomic>
#include <mutex>
#include <set>
#include <thread>

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

TEST(Parallel, GivesEachThreadAnIndexOfItsOwnBelowTheLimit) {
  const int saved = omp_get_max_threads();
  for (int threads : {1, 2, 5, 3}) {
    omp_set_num_threads(threads);
    ASSERT_EQ(threads, threads::limit());
    std::vector<std::atomic<int>> inside(static_cast<size_t>(threads));
    for (int round = 0; round < 200; ++round)
      parallel_for(17, 1, [&](int64_t, int64_t) {
        const int index = threads::index();
        if (index >= threads || inside[size_t(index)]++ != 0) ADD_FAILURE() << "index " << index << " of " << threads;
        std::this_thread::yield();
        if (index < threads) --inside[size_t(index)];
      });
    EXPECT_EQ(0, threads::index());
  }
  omp_set_num_threads(saved);
}

TEST(Parallel, ALoopInsideOfAnotherAndLoopsOfSeveralThreadsCoverTheirItems) {
  const int saved = omp_get_max_threads();
  omp_set_num_threads(3);
  const auto nested = [] {
    std::atomic<int64_t> sum = 0;
    for (int round = 0; round < 100; ++round)
      parallel_for(9, 2, [&](int64_t begin, int64_t end) {
        EXPECT_LT(threads::index(), threads::limit());
        parallel_for(end - begin, 1, [&](int64_t i, int64_t) { sum += begin + i; });
      });
    return int64_t(sum);
  };
  std::vector<int64_t> sums(4);
  std::vector<std::thread> others;
  for (int64_t& sum : sums)
    others.emplace_back([&sum, nested] {
      omp_set_num_threads(3);
      sum = nested();
    });
  EXPECT_EQ(100 * 36, nested());
  for (std::thread& t : others) t.join();
  for (int64_t sum : sums) EXPECT_EQ(100 * 36, sum);
  omp_set_num_threads(saved);
}

TEST(Parallel, TasksRunOnceInAscendingOrderOnAtMostTheThreadsAskedFor) {
  const int saved = omp_get_max_threads();
  for (int allowed : {1, 4})
    for (int threads : {1, 2, 5}) {
      omp_set_num_threads(allowed);  // a number of threads that is given counts instead
      for (int64_t n : {0, 1, 2, 37, 200}) {
        std::vector<std::atomic<int>> done(static_cast<size_t>(n));
        std::vector<int64_t> last(size_t(threads), -1);
        share_tasks(n, threads, [&](int64_t i) {
          ++done[size_t(i)];
          if (threads::index() >= threads || last[size_t(threads::index())] >= i) {
            ADD_FAILURE() << "task " << i << " on thread " << threads::index() << " of " << threads;
            return;
          }
          last[size_t(threads::index())] = i;
        });
        for (const auto& times : done) EXPECT_EQ(1, times);
      }
    }
  omp_set_num_threads(saved);
}

TEST(Parallel, ALoopSeesWhatTheOneBeforeItDid) {
  std::vector<int64_t> values(101), next(values.size());
  for (int64_t round = 0; round < 500; ++round) {
    share_tasks(101, 3, [&](int64_t i) { next[size_t(i)] = values[size_t(100 - i)] + 1; });
    values.swap(next);
  }
  for (int64_t v : values) EXPECT_EQ(500, v);
}

TEST(Parallel, ASleepingThreadIsWokenForTheNextLoop) {
  const int saved = omp_get_max_threads();
  omp_set_num_threads(2);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::microseconds(20 * threads::kSpinMicroseconds));
    // Each item waits for the other, so that one thread alone would wait for ever.
    std::atomic<int> arrived = 0;
    parallel_for(2, 1, [&](int64_t, int64_t) {
      ++arrived;
      while (arrived < 2) std::this_thread::yield();
    });
    EXPECT_EQ(2, arrived);
  }
  omp_set_num_threads(saved);
}
