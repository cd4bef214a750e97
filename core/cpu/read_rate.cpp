#include "core/read_rate.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "core/cpu/wide.h"
#include "core/parallel.h"

namespace mmfree {
namespace {

/// Words of a part, which one thread reads at a time: quarters of 64 KiB, read side by side. One stream of addresses
/// leaves the memory idle at each page's end, where the processor stops to fetch ahead; four never end together.
constexpr int64_t kStreams = 4, kPartWords = int64_t(1) << 15, kStreamWords = kPartWords / kStreams;

uint64_t sum_of_part(const uint64_t* words) {
  using Vector [[gnu::vector_size(64)]] = uint64_t;
  constexpr int64_t kVector = sizeof(Vector) / sizeof(uint64_t);
  Vector sums[kStreams] = {};
  for (int64_t i = 0; i < kStreamWords; i += kVector)
#pragma GCC unroll 4
    for (int64_t s = 0; s < kStreams; ++s) {
      Vector v;
      __builtin_memcpy(&v, words + s * kStreamWords + i, sizeof v);
      sums[s] += v;
    }
  uint64_t sum = 0;
  for (const Vector& v : sums)
    for (int64_t i = 0; i < kVector; ++i) sum += v[i];
  return sum;
}

#if MMFREE_WIDE_VECTORS
MMFREE_WIDE uint64_t wide_sum_of_part(const uint64_t* words) { return sum_of_part(words); }
#endif

}  // namespace

uint64_t sum_of_words(const uint64_t* words, int64_t n) {
  uint64_t sum = 0;
  int64_t i = 0;
  for (; i + kPartWords <= n; i += kPartWords) {
#if MMFREE_WIDE_VECTORS
    if (cpu::has_wide_vectors()) {
      sum += wide_sum_of_part(words + i);
      continue;
    }
#endif
    sum += sum_of_part(words + i);
  }
  for (; i < n; ++i) sum += words[i];
  return sum;
}

double host_read_rate(int64_t bytes, int threads) {
  const int64_t parts = std::max<int64_t>(1, bytes / int64_t(sizeof(uint64_t)) / kPartWords);
  std::vector<uint64_t> memory(size_t(parts * kPartWords), 1), sums(static_cast<size_t>(parts));
  double best = 0;
  for (int pass = 0; pass < 6; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    share_tasks(parts, threads,
                [&](int64_t i) { sums[size_t(i)] = sum_of_words(memory.data() + i * kPartWords, kPartWords); });
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    volatile uint64_t used = sums[size_t(pass) % sums.size()];
    static_cast<void>(used);
    best = std::max(best, double(parts * kPartWords * int64_t(sizeof(uint64_t))) / seconds);
  }
  return best;
}

}  // namespace mmfree
