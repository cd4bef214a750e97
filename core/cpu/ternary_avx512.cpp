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

/// sums += products of unsigned and signed bytes, four to a lane. As text, because compilers that see the builtin copy
/// the sums from register to register, and some of them through memory.
MMFREE_TARGET inline void add_wide_products(__m512i& sums, __m512i codes, __m512i q) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(codes), "v"(q));
}

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
      for (int c = 0; c < C; ++c) add_wide_products(sums[r][c], panel[c], x);
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

/// to[i] = the i-th 32-bit word of each of 16 rows, which are in the halves of rows[0..8): 0 to 7 in the lower ones.
MMFREE_TARGET inline void transpose_words(const __m512i (&rows)[8], __m512i (&to)[8]) {
  __m512i pairs[8], fours[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);      // words 0 1 and 4 5 of two rows
    pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);  // words 2 3 and 6 7
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      fours[i + 2 * k] = _mm512_unpacklo_epi64(pairs[i + k], pairs[i + 2 + k]);      // words 2k and 2k + 4 of four rows
      fours[i + 2 * k + 1] = _mm512_unpackhi_epi64(pairs[i + k], pairs[i + 2 + k]);  // words 2k + 1 and 2k + 5
    }
  const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), high = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    to[i] = _mm512_permutex2var_epi64(fours[i], low, fours[i + 4]);
    to[i + 4] = _mm512_permutex2var_epi64(fours[i], high, fours[i + 4]);
  }
}

/// fill_panel with 512-bit vectors.
MMFREE_TARGET inline void fill_wide_panel(const uint8_t* codes, int64_t code_stride, int64_t outputs, int64_t blocks,
                                          uint8_t* panel) {
  const __m512i three = _mm512_set1_epi8(3);
  const auto row = [&](int64_t o, int64_t b) __attribute__((always_inline)) {
    return _mm256_loadu_si256(
        reinterpret_cast<const __m256i*>(codes + std::min(o, outputs - 1) * code_stride + b * 32));
  };
  for (int64_t b = 0; b < blocks; ++b, panel += 32 * kPanelQuad) {
    __m512i rows[8], words[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) rows[i] = _mm512_inserti64x4(_mm512_castsi256_si512(row(i, b)), row(i + 8, b), 1);
    transpose_words(rows, words);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i)
#pragma GCC unroll 4
      for (int plane = 0; plane < 4; ++plane)
        _mm512_store_si512(panel + (plane * 8 + i) * kPanelQuad,
                           _mm512_and_si512(_mm512_srli_epi16(words[i], 2 * plane), three));
  }
}

MMFREE_TARGET void many_wide_rows(const TernaryTile& t) {
  alignas(64) uint8_t panels[kWide * kWideBlocks * 32 * kPanelQuad];
  const int64_t q_stride = t.blocks * 128, code_stride = t.blocks * 32;
  for (int64_t b = 0; b < t.blocks; b += kWideBlocks) {
    const int64_t blocks = std::min(kWideBlocks, t.blocks - b), quads = blocks * 32;
    for (int64_t o = 0; o < t.outputs; o += kWideOutputs) {
      const int64_t count = std::min(kWide, (t.outputs - o + kPanelOutputs - 1) / kPanelOutputs);
      for (int64_t c = 0; c < count; ++c)
        fill_wide_panel(t.codes + (o + c * kPanelOutputs) * code_stride + b * 32, code_stride,
                        t.outputs - o - c * kPanelOutputs, blocks, panels + c * quads * kPanelQuad);
      any_panels(count, panels, quads, t.q + b * 128, q_stride, t.rows, t.out + o, t.out_stride, b > 0);
    }
  }
}

/// Products of few rows read the codes where they are, two blocks of a row at a time. Activations are arranged
/// likewise: [pair of blocks][plane][block of the pair][32].
constexpr int64_t kPairsAtOnce = 32, kPairBytes = 256;

/// Asks for codes that are read soon: those of later outputs, and behind the last ones often those of the next matrix.
MMFREE_TARGET inline void fetch_ahead(const uint8_t* codes) {
  constexpr int64_t kAhead = 8192;
  _mm_prefetch(reinterpret_cast<const char*>(codes + kAhead), _MM_HINT_T1);
}

/// Arranges `blocks` blocks of a row. A block that is missing in the last pair is zeros.
MMFREE_TARGET inline void arrange(const int8_t* q, int64_t blocks, int8_t* to) {
  for (int64_t b = 0; b < blocks; ++b)
    for (int64_t plane = 0; plane < 4; ++plane) {
      int8_t* at = to + b / 2 * kPairBytes + plane * 64 + b % 2 * 32;
      _mm256_store_si256(reinterpret_cast<__m256i*>(at),
                         _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q + b * 128 + plane * 32)));
      if (b % 2 == 0 && b + 1 == blocks)
        _mm256_store_si256(reinterpret_cast<__m256i*>(at + 32), _mm256_setzero_si256());
    }
}

/// The sums of the lanes of eight vectors.
MMFREE_TARGET inline __m256i add_wide_lanes(const __m512i (&v)[8]) {
  __m256i half[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    half[i] = _mm256_add_epi32(_mm512_castsi512_si256(v[i]), _mm512_extracti64x4_epi64(v[i], 1));
  const __m256i low = _mm256_hadd_epi32(_mm256_hadd_epi32(half[0], half[1]), _mm256_hadd_epi32(half[2], half[3]));
  const __m256i high = _mm256_hadd_epi32(_mm256_hadd_epi32(half[4], half[5]), _mm256_hadd_epi32(half[6], half[7]));
  return _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31));
}

/// Quarters of 128 bits: 0 + 1 and 2 + 3 of a, then those of b.
MMFREE_TARGET inline __m512i add_quarters(__m512i a, __m512i b) {
  return _mm512_add_epi32(_mm512_shuffle_i64x2(a, b, 0x88), _mm512_shuffle_i64x2(a, b, 0xdd));
}

/// The sums of the lanes of sixteen vectors. At each step a vector takes in another, which halves their number.
MMFREE_TARGET inline __m512i add_lanes_of_16(const __m512i (&v)[16]) {
  __m512i pairs[8], fours[4], halves[2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    pairs[i] =
        _mm512_add_epi32(_mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    fours[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(pairs[2 * i], pairs[2 * i + 1]),
                                _mm512_unpackhi_epi64(pairs[2 * i], pairs[2 * i + 1]));
  for (int i = 0; i < 2; ++i) halves[i] = add_quarters(fours[2 * i], fours[2 * i + 1]);
  return add_quarters(halves[0], halves[1]);
}

/// One pair of blocks of O outputs times one row. Planes 1 and 3 stay where they are, so the sums in b are four times
/// too large.
template <int O>
MMFREE_TARGET inline void add_pair(const uint8_t* codes, int64_t code_stride, __mmask64 valid, const int8_t* q,
                                   __m512i (&a)[O], __m512i (&b)[O]) {
  const __m512i low = _mm512_set1_epi8(3), high = _mm512_set1_epi8(12);
  const __m512i q0 = _mm512_load_si512(q), q1 = _mm512_load_si512(q + 64);
  const __m512i q2 = _mm512_load_si512(q + 128), q3 = _mm512_load_si512(q + 192);
#pragma GCC unroll 8
  for (int o = 0; o < O; ++o) {
    const __m512i packed = _mm512_maskz_loadu_epi8(valid, codes + o * code_stride);
    const __m512i upper = _mm512_srli_epi16(packed, 4);
    add_wide_products(a[o], _mm512_and_si512(packed, low), q0);
    add_wide_products(b[o], _mm512_and_si512(packed, high), q1);
    add_wide_products(a[o], _mm512_and_si512(upper, low), q2);
    add_wide_products(b[o], _mm512_and_si512(upper, high), q3);
  }
}

/// O outputs of one row.
template <int O>
MMFREE_TARGET inline void one_row(const uint8_t* codes, int64_t code_stride, const int8_t* q, int64_t blocks,
                                  int32_t* out, bool add) {
  __m512i a[8] = {}, b[O];
  __m512i(&sums)[O] = reinterpret_cast<__m512i(&)[O]>(a);
#pragma GCC unroll 8
  for (int o = 0; o < O; ++o) b[o] = _mm512_setzero_si512();
  for (int64_t i = 0; i < blocks / 2; ++i, codes += 64, q += kPairBytes) {
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o) fetch_ahead(codes + o * code_stride);
    add_pair(codes, code_stride, ~__mmask64(0), q, sums, b);
  }
  if (blocks % 2) add_pair(codes, code_stride, 0xffffffff, q, sums, b);
#pragma GCC unroll 8
  for (int o = 0; o < O; ++o) a[o] = _mm512_add_epi32(a[o], _mm512_srai_epi32(b[o], 2));
  const __m256i result = add_wide_lanes(a);
  __m256i* to = reinterpret_cast<__m256i*>(out);
  if constexpr (O == 8)
    _mm256_storeu_si256(to, add ? _mm256_add_epi32(_mm256_loadu_si256(to), result) : result);
  else
    *out = _mm256_cvtsi256_si32(result) + (add ? *out : 0);
}

/// A pair of blocks of O outputs times R rows.
template <int R, int O>
MMFREE_TARGET inline void add_pair_rows(const uint8_t* codes, int64_t code_stride, __mmask64 valid, const int8_t* q,
                                        int64_t q_stride, __m512i (&sums)[O][R]) {
  const __m512i three = _mm512_set1_epi8(3);
  __m512i packed[O], unpacked[O];
#pragma GCC unroll 8
  for (int o = 0; o < O; ++o) packed[o] = _mm512_maskz_loadu_epi8(valid, codes + o * code_stride);
#pragma GCC unroll 4
  for (int plane = 0; plane < 4; ++plane) {
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o) unpacked[o] = _mm512_and_si512(_mm512_srli_epi16(packed[o], 2 * plane), three);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512i x = _mm512_load_si512(q + r * q_stride + plane * 64);
#pragma GCC unroll 8
      for (int o = 0; o < O; ++o) add_wide_products(sums[o][r], unpacked[o], x);
    }
  }
}

/// O outputs of R rows with R · O = 8 or 16.
template <int R, int O>
MMFREE_TARGET inline void some_rows(const uint8_t* codes, int64_t code_stride, const int8_t* q, int64_t q_stride,
                                    int64_t blocks, int32_t* out, int64_t out_stride, bool add) {
  __m512i sums[O][R];
#pragma GCC unroll 8
  for (int o = 0; o < O; ++o)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sums[o][r] = _mm512_setzero_si512();
  for (int64_t i = 0; i < blocks / 2; ++i, codes += 64, q += kPairBytes) {
#pragma GCC unroll 8
    for (int o = 0; o < O; ++o) fetch_ahead(codes + o * code_stride);
    add_pair_rows(codes, code_stride, ~__mmask64(0), q, q_stride, sums);
  }
  if (blocks % 2) add_pair_rows(codes, code_stride, 0xffffffff, q, q_stride, sums);
  alignas(64) int32_t results[R * O];
  if constexpr (R * O == 16) {
    __m512i all[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) all[i] = sums[i % O][i / O];
    _mm512_store_si512(results, add_lanes_of_16(all));
  } else {
    __m512i all[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) all[i] = sums[i % O][i / O];
    _mm256_store_si256(reinterpret_cast<__m256i*>(results), add_wide_lanes(all));
  }
  for (int r = 0; r < R; ++r) {
    int32_t* to = out + r * out_stride;
    for (int o = 0; add && o < O; ++o) results[r * O + o] += to[o];
    __builtin_memcpy(to, results + r * O, O * sizeof(int32_t));
  }
}

/// All outputs of R rows, over up to kPairsAtOnce pairs of blocks. `q` is arranged.
template <int R>
MMFREE_TARGET inline void rows_in_pairs(const TernaryTile& t, const uint8_t* codes, const int8_t* q, int64_t blocks,
                                        int32_t* out, bool add) {
  constexpr int kOutputs = R <= 2 ? 8 / R : 16 / R;
  const int64_t code_stride = t.blocks * 32;
  int64_t o = 0;
  for (; o + kOutputs <= t.outputs; o += kOutputs) {
    if constexpr (R == 1)
      one_row<8>(codes + o * code_stride, code_stride, q, blocks, out + o, add);
    else
      some_rows<R, kOutputs>(codes + o * code_stride, code_stride, q, kPairsAtOnce * kPairBytes, blocks, out + o,
                             t.out_stride, add);
  }
  for (; o < t.outputs; ++o)
    for (int r = 0; r < R; ++r)
      one_row<1>(codes + o * code_stride, code_stride, q + r * kPairsAtOnce * kPairBytes, blocks,
                 out + r * t.out_stride + o, add);
}

MMFREE_TARGET void few_wide_rows(const TernaryTile& t) {
  alignas(64) int8_t arranged[8 * kPairsAtOnce * kPairBytes];
  for (int64_t r = 0; r < t.rows;) {
    const int64_t left = t.rows - r, rows = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    int32_t* out = t.out + r * t.out_stride;
    for (int64_t b = 0; b == 0 || b < t.blocks; b += 2 * kPairsAtOnce) {
      const int64_t blocks = std::min(2 * kPairsAtOnce, t.blocks - b);
      const uint8_t* codes = t.codes + b * 32;
      for (int64_t i = 0; i < rows; ++i)
        arrange(t.q + ((r + i) * t.blocks + b) * 128, blocks, arranged + i * kPairsAtOnce * kPairBytes);
      rows == 8   ? rows_in_pairs<8>(t, codes, arranged, blocks, out, b > 0)
      : rows == 4 ? rows_in_pairs<4>(t, codes, arranged, blocks, out, b > 0)
      : rows == 2 ? rows_in_pairs<2>(t, codes, arranged, blocks, out, b > 0)
                  : rows_in_pairs<1>(t, codes, arranged, blocks, out, b > 0);
    }
    r += rows;
  }
}

}  // namespace

void ternary_tile_avx512_vnni(const TernaryTile& t) {
  t.rows > 8 && t.blocks > 0 ? many_wide_rows(t) : few_wide_rows(t);
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
