#include "core/cpu/ternary_kernel.h"

#if MMFREE_X86
#include <immintrin.h>

namespace mmfree::cpu {
namespace {

/// The instructions add four products at a time to 32-bit sums, which cannot overflow (K <= 2^23).
constexpr int64_t kAddsPerSum = INT64_MAX;

#define MMFREE_TARGET __attribute__((target("avx2,avxvnni")))
MMFREE_TARGET inline __m256i add_products(__m256i sums, __m256i codes, __m256i q) {
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sums) : "x"(codes), "x"(q));  // see add_wide_products
  return sums;
}
MMFREE_TARGET inline __m256i widen(__m256i sums) { return sums; }
constexpr int kByteOffset = 128;
MMFREE_TARGET inline __m256i add_bytes(__m256i sums, __m256i bytes, __m256i q) {
  return _mm256_dpbusd_avx_epi32(sums, bytes, q);
}
#include "core/cpu/ternary_kernel.inc"
}  // namespace

void ternary_tile_avx_vnni(const TernaryTile& tile) { run_tile(tile); }
void transposed_tile_avx_vnni(const TransposedTile& tile) { transposed_tile(tile); }
void gradient_block_avx_vnni(const GradientBlock& block) { gradient_block(block); }

}  // namespace mmfree::cpu
#endif
