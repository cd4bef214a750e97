#include "core/ops/code_counts.h"

#include <atomic>
#include <bit>
#include <cstring>

#include "core/parallel.h"

namespace mmfree::cpu {
namespace {

/// The lower bits of all two-bit fields.
constexpr uint64_t kLow = 0x5555555555555555;

void add(int64_t& sum, int64_t n) { std::atomic_ref<int64_t>(sum).fetch_add(n, std::memory_order_relaxed); }

}  // namespace

void ternary_code_counts(const TernaryCodeCountsArgs& g) {
  const auto* codes = static_cast<const char*>(g.codes);
  const int64_t row_bytes = ternary_row_bytes(g.cols), padding = 4 * row_bytes - g.cols;
  parallel_for(g.rows, 64, [&](int64_t begin, int64_t end) {
    int64_t zeros = 0, flips = 0, dead = 0;
    for (int64_t o = begin; o < end; ++o) {
      int64_t of_row = -padding;  // which holds zeros
      for (int64_t at = o * row_bytes; at < (o + 1) * row_bytes; at += 8) {
        uint64_t now, then;
        std::memcpy(&now, codes + at, 8);
        std::memcpy(&then, g.before + at, 8);
        const uint64_t changed = now ^ then;
        of_row += std::popcount(now & ~(now >> 1) & kLow);
        flips += std::popcount((changed | changed >> 1) & kLow);
      }
      zeros += of_row;
      dead += of_row == g.cols;
    }
    std::memcpy(g.before + begin * row_bytes, codes + begin * row_bytes, size_t((end - begin) * row_bytes));
    add(g.counts[0], zeros), add(g.counts[1], flips), add(g.counts[2], dead);
  });
}

void row_code_counts(const RowCodeCountsArgs& g) {
  constexpr int64_t kPart = 1 << 16;  // whose sum of squares fits into 32 bits
  parallel_for(g.n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      int64_t squares = 0, most = 0;
      for (int64_t first = 0; first < g.k; first += kPart) {
        const int8_t* q = g.q + r * g.k + first;
        const int64_t count = std::min(kPart, g.k - first);
        int32_t sum = 0, at_most = 0;
        for (int64_t i = 0; i < count; ++i) {
          sum += int32_t(q[i]) * q[i];
          at_most += q[i] == 127 || q[i] == -127;
        }
        squares += sum, most += at_most;
      }
      g.counts[2 * r] = squares, g.counts[2 * r + 1] = most;
    }
  });
}

}  // namespace mmfree::cpu
