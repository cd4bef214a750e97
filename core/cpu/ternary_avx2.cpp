#include "core/cpu/ternary_kernel.h"

#if MMFREE_X86
#include <immintrin.h>

namespace mmfree::cpu {
namespace {

#define MMFREE_TARGET __attribute__((target("avx2")))

/// Pairs of products are summed in 16 bits. No sum can overflow: a code is at most 2 and an activation at least -128,
/// so a pair lies in [-512, 508] and 64 of them in [-32768, 32512].
constexpr int64_t kAddsPerSum = 64;
MMFREE_TARGET inline __m256i add_products(__m256i sums, __m256i codes, __m256i q) {
  sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(codes, q));
  asm("" : "+x"(sums));  // keeps the compiler from summing a block as a tree, which needs more registers than there are
  return sums;
}
MMFREE_TARGET inline __m256i widen(__m256i sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }

#include "core/cpu/ternary_kernel.inc"

}  // namespace

void ternary_tile_avx2(const TernaryTile& tile) { run_tile(tile); }

}  // namespace mmfree::cpu
#endif
