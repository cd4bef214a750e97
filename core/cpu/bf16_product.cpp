#include "core/cpu/bf16_product.h"

#include <algorithm>
#include <bit>
#include <memory>

#include "core/parallel.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mmfree::cpu {
namespace {

/// A task computes a tile of kRows x kCols, from kDepth rows of b and as many columns of a at a time, both of which it
/// packs into pairs of bf16. Four panels of 16 columns fit in the L1 cache.
constexpr int64_t kRows = 256, kCols = 128, kDepth = 256, kPairs = kDepth / 2, kLanes = 16, kPanels = 4;

struct Scratch {
  alignas(64) uint32_t a[kRows * kPairs];
  alignas(64) uint32_t b[kCols * kPairs];
  alignas(64) float sums[kRows * kCols];
};

/// x rounded to bf16, to nearest even; NaN stays NaN.
inline uint32_t rounded(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  return x == x ? (u + 0x7fffu + (u >> 16 & 1u)) >> 16 : 0x7fc0u;
}

/// Packs columns of a matrix stored as [depth, columns]: word [group][pair][lane] has rows 2 pair and 2 pair + 1 of
/// column 16 group + lane. Zeros beyond `depth` and `columns`.
void pack_columns(const float* from, int64_t stride, int64_t depth, int64_t columns, uint32_t* to) {
  for (int64_t first = 0; first < columns; first += kLanes)
    for (int64_t pair = 0; pair < kPairs; ++pair, to += kLanes) {
      const int64_t row = 2 * pair, lanes = std::min(kLanes, columns - first);
      const float* top = from + row * stride + first;
      if (lanes == kLanes && row + 1 < depth) {
#pragma omp simd
        for (int64_t l = 0; l < kLanes; ++l) to[l] = rounded(top[l]) | rounded(top[l + stride]) << 16;
        continue;
      }
      for (int64_t l = 0; l < kLanes; ++l) {
        const uint32_t low = l < lanes && row < depth ? rounded(top[l]) : 0;
        const uint32_t high = l < lanes && row + 1 < depth ? rounded(top[l + stride]) : 0;
        to[l] = low | high << 16;
      }
    }
}

/// Packs rows of a matrix stored as [rows, depth]: word [row][pair].
void pack_rows(const float* from, int64_t stride, int64_t depth, int64_t rows, uint32_t* to) {
  for (int64_t r = 0; r < rows; ++r, from += stride, to += kPairs) {
    uint16_t halves[kDepth] = {};
#pragma omp simd
    for (int64_t k = 0; k < depth; ++k) halves[k] = uint16_t(rounded(from[k]));
    std::copy_n(halves, kDepth, reinterpret_cast<uint16_t*>(to));
  }
}

#if defined(__x86_64__)
#define MMFREE_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))

/// sums[R, 64] += R rows of a, whose words are `row` and `pair` apart, times four panels.
template <int R>
MMFREE_TARGET inline void add_rows(const uint32_t* a, int64_t row, int64_t pair, const uint32_t* panels, float* sums) {
  __m512 total[R][kPanels];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < kPanels; ++c) total[r][c] = _mm512_setzero_ps();
  for (int64_t i = 0; i < kPairs; ++i, a += pair, panels += kLanes) {
    __m512i panel[kPanels];
#pragma GCC unroll 4
    for (int c = 0; c < kPanels; ++c) panel[c] = _mm512_load_si512(panels + c * kPairs * kLanes);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const __m512bh x = (__m512bh)_mm512_set1_epi32(int32_t(a[r * row]));
#pragma GCC unroll 4
      for (int c = 0; c < kPanels; ++c) total[r][c] = _mm512_dpbf16_ps(total[r][c], x, (__m512bh)panel[c]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < kPanels; ++c) {
      float* to = sums + r * kCols + c * kLanes;
      _mm512_store_ps(to, _mm512_add_ps(_mm512_load_ps(to), total[r][c]));
    }
}

MMFREE_TARGET void add_tile(const Scratch& s, bool columns_of_a, int64_t rows, int64_t cols, float* sums) {
  const int64_t row = columns_of_a ? 1 : kPairs, pair = columns_of_a ? kLanes : 1;
  for (int64_t c = 0; c < cols; c += kPanels * kLanes)
    for (int64_t r = 0; r < rows;) {
      const uint32_t* a = s.a + (columns_of_a ? r / kLanes * kPairs * kLanes + r % kLanes : r * kPairs);
      const bool four = rows - r >= 4;
      (four ? add_rows<4> : add_rows<1>)(a, row, pair, s.b + c * kPairs, sums + r * kCols + c);
      r += four ? 4 : 1;
    }
}
#undef MMFREE_TARGET
#else
void add_tile(const Scratch&, bool, int64_t, int64_t, float*) {}
#endif

}  // namespace

bool has_bf16_product() {
#if defined(__x86_64__)
  static const bool has =
      __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  return has;
#else
  return false;
#endif
}

void bf16_product(const MatmulArgs& p) {
  const auto *a = static_cast<const float*>(p.a), *b = static_cast<const float*>(p.b);
  const float alpha = float(p.alpha), beta = float(p.beta);
  const int64_t down = (p.m + kRows - 1) / kRows, across = (p.n + kCols - 1) / kCols;
  parallel_for(down * across, 1, [=](int64_t t, int64_t) {
    static thread_local const std::unique_ptr<Scratch> scratch(new Scratch);
    Scratch& s = *scratch;
    const int64_t i = t % down * kRows, j = t / down * kCols;
    const int64_t rows = std::min(kRows, p.m - i), cols = std::min(kCols, p.n - j);
    std::fill_n(s.sums, kRows * kCols, 0.0f);
    for (int64_t k = 0; k < p.k; k += kDepth) {
      const int64_t depth = std::min(kDepth, p.k - k);
      if (p.transpose_a)
        pack_columns(a + k * p.lda + i, p.lda, depth, rows, s.a);
      else
        pack_rows(a + i * p.lda + k, p.lda, depth, rows, s.a);
      if (cols < kCols) std::fill_n(s.b, kCols * kPairs, 0u);
      pack_columns(b + k * p.ldb + j, p.ldb, depth, cols, s.b);
      add_tile(s, p.transpose_a, rows, cols, s.sums);
    }
    for (int64_t r = 0; r < rows; ++r) {
      float* to = static_cast<float*>(p.c) + (i + r) * p.n + j;
      const float* from = s.sums + r * kCols;
      if (beta == 0)
        for (int64_t c = 0; c < cols; ++c) to[c] = alpha * from[c];
      else
        for (int64_t c = 0; c < cols; ++c) to[c] = alpha * from[c] + beta * to[c];
    }
  });
}

}  // namespace mmfree::cpu
