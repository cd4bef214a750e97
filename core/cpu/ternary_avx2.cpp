#include "core/cpu/ternary_kernel.h"

#if MMFREE_X86
#include <immintrin.h>

namespace mmfree::cpu {
namespace {

#define MMFREE_TARGET __attribute__((target("avx2")))

MMFREE_TARGET inline int32_t add_lanes(__m256i v);

/// Pairs are summed in 16 bits and widened every 16 blocks. No sum can overflow: a code is at most 2, an activation at
/// least -128, so a pair lies in [-512, 508]; 16 blocks add 64 pairs per lane: [-32768, 32512].
struct Sum {
  static constexpr int64_t kSettle = 16;
  __m256i narrow, wide;
  MMFREE_TARGET void clear() { narrow = wide = _mm256_setzero_si256(); }
  MMFREE_TARGET void add(__m256i codes, __m256i q) {
    narrow = _mm256_add_epi16(narrow, _mm256_maddubs_epi16(codes, q));
  }
  MMFREE_TARGET void settle() {
    wide = _mm256_add_epi32(wide, _mm256_madd_epi16(narrow, _mm256_set1_epi16(1)));
    narrow = _mm256_setzero_si256();
  }
  MMFREE_TARGET int32_t total() const { return add_lanes(wide); }
};

#include "core/cpu/ternary_kernel.inc"

}  // namespace

void ternary_tile_avx2(const TernaryTile& tile) { tile_of(tile); }

}  // namespace mmfree::cpu
#endif
