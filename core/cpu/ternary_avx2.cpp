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

/// The bytes of a panel stay signed: sums of two products of magnitudes, at most 128 * 127 each, fit in 16 bits.
constexpr int kByteOffset = 0;
MMFREE_TARGET inline __m256i add_bytes(__m256i sums, __m256i bytes, __m256i q) {
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(bytes), _mm256_sign_epi8(q, bytes));
  return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

#include "core/cpu/ternary_kernel.inc"

}  // namespace

void ternary_tile_avx2(const TernaryTile& tile) { run_tile(tile); }
void transposed_tile_avx2(const TransposedTile& tile) { transposed_tile(tile); }
void gradient_block_avx2(const GradientBlock& block) { gradient_block(block); }

}  // namespace mmfree::cpu
#endif
