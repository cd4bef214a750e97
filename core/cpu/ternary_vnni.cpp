#include "core/cpu/ternary_kernel.h"

#if MMFREE_X86
#include <immintrin.h>

namespace mmfree::cpu {
namespace {

#define MMFREE_SUM(instruction)                                                              \
  MMFREE_TARGET inline int32_t add_lanes(__m256i v);                                         \
  struct Sum {                                                                               \
    static constexpr int64_t kSettle = INT64_MAX / 2;                                        \
    __m256i wide;                                                                            \
    MMFREE_TARGET void clear() { wide = _mm256_setzero_si256(); }                            \
    MMFREE_TARGET void add(__m256i codes, __m256i q) { wide = instruction(wide, codes, q); } \
    MMFREE_TARGET void settle() {}                                                           \
    MMFREE_TARGET int32_t total() const { return add_lanes(wide); }                          \
  };

namespace evex {
#define MMFREE_TARGET __attribute__((target("avx2,avx512f,avx512vl,avx512vnni")))
MMFREE_SUM(_mm256_dpbusd_epi32)
#include "core/cpu/ternary_kernel.inc"
#undef MMFREE_TARGET
}  // namespace evex

namespace vex {
#define MMFREE_TARGET __attribute__((target("avx2,avxvnni")))
MMFREE_SUM(_mm256_dpbusd_avx_epi32)
#include "core/cpu/ternary_kernel.inc"
#undef MMFREE_TARGET
}  // namespace vex

}  // namespace

void ternary_tile_avx512_vnni(const TernaryTile& tile) { evex::tile_of(tile); }
void ternary_tile_avx_vnni(const TernaryTile& tile) { vex::tile_of(tile); }

}  // namespace mmfree::cpu
#endif
