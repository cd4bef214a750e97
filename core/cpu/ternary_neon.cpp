#include "core/cpu/ternary_kernel.h"

#if MMFREE_ARM
#include <arm_neon.h>

namespace mmfree::cpu {
namespace {

#define MMFREE_TARGET __attribute__((target("arch=armv8.2-a+dotprod")))

/// Half a block of one output: 16 bytes, whose planes are columns 0, 32, 64 and 96 on.
MMFREE_TARGET inline void unpack(const uint8_t* codes, int8x16_t (&planes)[4]) {
  const uint8x16_t packed = vld1q_u8(codes), three = vdupq_n_u8(3);
  planes[0] = vreinterpretq_s8_u8(vandq_u8(packed, three));
  planes[1] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(packed, 2), three));
  planes[2] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(packed, 4), three));
  planes[3] = vreinterpretq_s8_u8(vshrq_n_u8(packed, 6));
}

/// R rows by O outputs. The instructions add four products at a time to 32-bit sums, which cannot overflow (K <= 2^23).
template <int R, int O>
MMFREE_TARGET inline void block_of(const TernaryTile& t, int64_t row, int64_t output) {
  const int64_t q_stride = t.blocks * 128, code_stride = t.blocks * 32;
  const int8_t* q = t.q + row * q_stride;
  const uint8_t* codes = t.codes + output * code_stride;
  int32x4_t sums[R][O];
  for (int r = 0; r < R; ++r)
    for (int o = 0; o < O; ++o) sums[r][o] = vdupq_n_s32(0);
  for (int64_t b = 0; b < t.blocks; ++b, codes += 32, q += 128)
    for (int half = 0; half < 32; half += 16) {
      int8x16_t planes[O][4];
#pragma GCC unroll 4
      for (int o = 0; o < O; ++o) unpack(codes + o * code_stride + half, planes[o]);
#pragma GCC unroll 4
      for (int plane = 0; plane < 4; ++plane)
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          const int8x16_t x = vld1q_s8(q + r * q_stride + plane * 32 + half);
#pragma GCC unroll 4
          for (int o = 0; o < O; ++o) sums[r][o] = vdotq_s32(sums[r][o], planes[o][plane], x);
        }
    }
  for (int r = 0; r < R; ++r)
    for (int o = 0; o < O; ++o) t.out[(row + r) * t.out_stride + output + o] = vaddvq_s32(sums[r][o]);
}

template <int R>
MMFREE_TARGET inline void rows_of(const TernaryTile& t, int64_t row) {
  constexpr int kOutputs = R == 1 ? 4 : 2;
  int64_t o = 0;
  for (; o + kOutputs <= t.outputs; o += kOutputs) block_of<R, kOutputs>(t, row, o);
  for (; o < t.outputs; ++o) block_of<R, 1>(t, row, o);
}

}  // namespace

MMFREE_TARGET void ternary_tile_neon_dotprod(const TernaryTile& t) {
  int64_t r = 0;
  for (; r + 4 <= t.rows; r += 4) rows_of<4>(t, r);
  if (r + 2 <= t.rows) rows_of<2>(t, r), r += 2;
  if (r < t.rows) rows_of<1>(t, r);
}

}  // namespace mmfree::cpu
#endif
