#include "core/cpu/ternary_kernel.h"

#if MMFREE_X86
#include <immintrin.h>

namespace mmfree::cpu {
namespace {

/// The instructions add four products at a time to 32-bit sums, which cannot overflow (K <= 2^23).
constexpr int64_t kAddsPerSum = INT64_MAX;

namespace evex {
#define MMFREE_TARGET __attribute__((target("avx2,avx512f,avx512vl,avx512vnni")))
MMFREE_TARGET inline __m256i add_products(__m256i sums, __m256i codes, __m256i q) {
  return _mm256_dpbusd_epi32(sums, codes, q);
}
MMFREE_TARGET inline __m256i widen(__m256i sums) { return sums; }
#include "core/cpu/ternary_kernel.inc"
#undef MMFREE_TARGET
}  // namespace evex

namespace vex {
#define MMFREE_TARGET __attribute__((target("avx2,avxvnni")))
MMFREE_TARGET inline __m256i add_products(__m256i sums, __m256i codes, __m256i q) {
  return _mm256_dpbusd_avx_epi32(sums, codes, q);
}
MMFREE_TARGET inline __m256i widen(__m256i sums) { return sums; }
#include "core/cpu/ternary_kernel.inc"
#undef MMFREE_TARGET
}  // namespace vex

}  // namespace

void ternary_tile_avx512_vnni(const TernaryTile& tile) { evex::run_tile(tile); }
void ternary_tile_avx_vnni(const TernaryTile& tile) { vex::run_tile(tile); }

}  // namespace mmfree::cpu
#endif
