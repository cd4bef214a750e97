#include <algorithm>

#include "core/cpu/ternary_kernel.h"

#if MMFREE_X86
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC's own header leaves operands undefined on purpose
#endif
#include <immintrin.h>

namespace mmfree::cpu {
namespace {

/// The instructions add four products at a time to 32-bit sums, which cannot overflow (K <= 2^23).
constexpr int64_t kAddsPerSum = INT64_MAX;

#define MMFREE_TARGET __attribute__((target("avx2,avx512f,avx512bw,avx512vl,avx512vnni")))
MMFREE_TARGET inline __m256i add_products(__m256i sums, __m256i codes, __m256i q) {
  return _mm256_dpbusd_epi32(sums, codes, q);
}
MMFREE_TARGET inline __m256i widen(__m256i sums) { return sums; }
constexpr int kByteOffset = 128;
MMFREE_TARGET inline __m256i add_bytes(__m256i sums, __m256i bytes, __m256i q) {
  return _mm256_dpbusd_epi32(sums, bytes, q);
}
#include "core/cpu/ternary_kernel.inc"

/// Panels that are multiplied at a time, 16 outputs each: with four rows they fill 16 of the 32 registers.
constexpr int64_t kWide = 4, kWideOutputs = kWide * kPanelOutputs;
/// Blocks of columns in a panel: four panels fit in the L1 cache.
constexpr int64_t kWideBlocks = 4;

/// sums[R][C] = Σ over `quads` of R words, of four signed codes each, times C panels.
template <int R, int C>
MMFREE_TARGET inline void multiply(const uint8_t* panels, int64_t panel_bytes, const int8_t* q, int64_t q_row,
                                   int64_t q_quad, int64_t quads, __m512i (&sums)[R][C]) {
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) sums[r][c] = _mm512_setzero_si512();
  for (int64_t i = 0; i < quads; ++i, panels += kPanelQuad, q += q_quad) {
    __m512i panel[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) panel[c] = _mm512_load_si512(panels + c * panel_bytes);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      int32_t four;
      __builtin_memcpy(&four, q + r * q_row, 4);
      const __m512i x = _mm512_set1_epi32(four);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sums[r][c] = _mm512_dpbusd_epi32(sums[r][c], panel[c], x);
    }
  }
}

/// out[R, 16 C] = R rows of q times C panels, added to out if `add`.
template <int R, int C>
MMFREE_TARGET inline void wide_rows(const uint8_t* panels, int64_t quads, const int8_t* q, int64_t q_stride,
                                    int32_t* out, int64_t out_stride, bool add) {
  __m512i sums[R][C];
  multiply<R, C>(panels, quads * kPanelQuad, q, q_stride, 4, quads, sums);
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      int32_t* to = out + r * out_stride + c * 16;
      _mm512_storeu_si512(to, add ? _mm512_add_epi32(_mm512_loadu_si512(to), sums[r][c]) : sums[r][c]);
    }
}

template <int C>
MMFREE_TARGET inline void wide_panels(const uint8_t* panels, int64_t quads, const int8_t* q, int64_t q_stride,
                                      int64_t rows, int32_t* out, int64_t out_stride, bool add) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4)
    wide_rows<4, C>(panels, quads, q + r * q_stride, q_stride, out + r * out_stride, out_stride, add);
  for (; r < rows; ++r)
    wide_rows<1, C>(panels, quads, q + r * q_stride, q_stride, out + r * out_stride, out_stride, add);
}

/// Calls wide_panels for 1 to kWide panels.
MMFREE_TARGET inline void any_panels(int64_t count, const uint8_t* panels, int64_t quads, const int8_t* q,
                                     int64_t q_stride, int64_t rows, int32_t* out, int64_t out_stride, bool add) {
  if (count == 1) return wide_panels<1>(panels, quads, q, q_stride, rows, out, out_stride, add);
  if (count == 2) return wide_panels<2>(panels, quads, q, q_stride, rows, out, out_stride, add);
  if (count == 3) return wide_panels<3>(panels, quads, q, q_stride, rows, out, out_stride, add);
  wide_panels<4>(panels, quads, q, q_stride, rows, out, out_stride, add);
}

MMFREE_TARGET void many_wide_rows(const TernaryTile& t) {
  alignas(64) uint8_t panels[kWide * kWideBlocks * 32 * kPanelQuad];
  const int64_t q_stride = t.blocks * 128, code_stride = t.blocks * 32;
  for (int64_t b = 0; b < t.blocks; b += kWideBlocks) {
    const int64_t blocks = std::min(kWideBlocks, t.blocks - b), quads = blocks * 32;
    for (int64_t o = 0; o < t.outputs; o += kWideOutputs) {
      const int64_t count = std::min(kWide, (t.outputs - o + kPanelOutputs - 1) / kPanelOutputs);
      for (int64_t c = 0; c < count; ++c)
        fill_panel(t.codes + (o + c * kPanelOutputs) * code_stride + b * 32, code_stride,
                   t.outputs - o - c * kPanelOutputs, blocks, panels + c * quads * kPanelQuad);
      any_panels(count, panels, quads, t.q + b * 128, q_stride, t.rows, t.out + o, t.out_stride, b > 0);
    }
  }
}

}  // namespace

void ternary_tile_avx512_vnni(const TernaryTile& t) {
  t.rows >= kManyRows&& t.blocks > 0 ? many_wide_rows(t) : few_rows(t);
}

MMFREE_TARGET void transposed_tile_avx512_vnni(const TransposedTile& t) {
  constexpr int64_t kQuads = 128;
  alignas(64) uint8_t panels[kWide * kQuads * kPanelQuad];
  clear_if_empty(t);
  for (int64_t first = 0; first < t.depth; first += 4 * kQuads) {
    const int64_t depth = std::min(4 * kQuads, t.depth - first), quads = (depth + 3) / 4;
    for (int half = 0; half < 2; ++half) {
      fill_transposed(t.codes + first * t.code_stride, t.code_stride, depth, half, panels);
      wide_panels<kWide>(panels, quads, t.q + first, t.q_stride, t.rows, t.out + half * kWideOutputs, 128, first > 0);
    }
  }
}

namespace {

/// dw[R, 64] of rows `o` on of a group, whose codes are at `g`.
template <int R>
MMFREE_TARGET inline void wide_gradient_rows(const GradientBlock& b, const uint8_t* panels, int64_t o, float* dw,
                                             int64_t dw_stride) {
  __m512i sums[R][kWide];
  multiply<R, kWide>(panels, kGradientQuads * kPanelQuad, reinterpret_cast<const int8_t*>(b.g + gradient_word(o)), 4,
                     4 * kGradientGroup, kGradientQuads, sums);
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    const __m512i offset = _mm512_set1_epi32(kByteOffset * b.sums[o + r]);
    const __m512 scale = _mm512_set1_ps(b.scale[o + r]);
#pragma GCC unroll 4
    for (int c = 0; c < kWide; ++c) {
      float* to = dw + r * dw_stride + c * 16;
      const __m512 term = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(sums[r][c], offset)), scale);
      _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), term));
    }
  }
}

}  // namespace

MMFREE_TARGET void gradient_block_avx512_vnni(const GradientBlock& b) {
  alignas(64) uint8_t panels[kWide * kGradientQuads * kPanelQuad];
  for (int64_t first = 0; first < b.columns; first += kWideOutputs) {
    const int64_t columns = std::min(kWideOutputs, b.columns - first);
    fill_bytes(b.x + first, b.x_stride, b.rows, columns, kByteOffset, panels);
    fill_bytes(b.x + first + 32, b.x_stride, b.rows, columns - 32, kByteOffset,
               panels + 2 * kGradientQuads * kPanelQuad);
    for (int64_t o = 0; o < b.outputs;) {
      float* dw = b.dw + o * b.dw_stride + first;
      const int64_t rows = b.outputs - o >= 4 ? 4 : 1;
      if (columns == kWideOutputs) {
        rows == 4 ? wide_gradient_rows<4>(b, panels, o, dw, b.dw_stride)
                  : wide_gradient_rows<1>(b, panels, o, dw, b.dw_stride);
      } else {
        alignas(64) float edge[4 * kWideOutputs] = {};
        copy_rows(dw, b.dw_stride, edge, kWideOutputs, rows, columns);
        rows == 4 ? wide_gradient_rows<4>(b, panels, o, edge, kWideOutputs)
                  : wide_gradient_rows<1>(b, panels, o, edge, kWideOutputs);
        copy_rows(edge, kWideOutputs, dw, b.dw_stride, rows, columns);
      }
      o += rows;
    }
  }
}
#undef MMFREE_TARGET

}  // namespace mmfree::cpu
#endif
