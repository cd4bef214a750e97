#include "core/read_rate.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "core/cpu/team.h"

namespace mmfree {
namespace {

/// Sums of bytes that are a multiple of 512.
uint64_t sum_of(const char* from, int64_t bytes) {
  constexpr int kSums = 64;
  uint64_t sums[kSums] = {};
  for (int64_t at = 0; at < bytes; at += int64_t(sizeof sums)) {
    uint64_t words[kSums];
    std::memcpy(words, from + at, sizeof words);
    for (int64_t ahead = 0; ahead < int64_t(sizeof words); ahead += 64)
      __builtin_prefetch(from + at + 8192 + ahead, 0, 2);
#pragma omp simd
    for (int i = 0; i < kSums; ++i) sums[i] += words[i];
  }
  uint64_t sum = 0;
  for (uint64_t s : sums) sum += s;
  return sum;
}

}  // namespace

double host_read_rate(int64_t bytes, int threads) {
  constexpr int64_t kPart = 1 << 16;
  const int64_t parts = std::max<int64_t>(1, bytes / kPart);
  std::vector<char> memory(size_t(parts * kPart), 1);
  std::vector<uint64_t> sums(static_cast<size_t>(parts));
  double best = 0;
  for (int pass = 0; pass < 6; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    cpu::with_team(threads, [&](cpu::Member& member) {
      member.share(parts, [&](int64_t i) { sums[size_t(i)] = sum_of(memory.data() + i * kPart, kPart); });
    });
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    volatile uint64_t used = sums[size_t(pass) % sums.size()];
    static_cast<void>(used);
    best = std::max(best, double(parts * kPart) / seconds);
  }
  return best;
}

}  // namespace mmfree
