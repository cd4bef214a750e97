#include "core/ops/ternary_int8.h"

#include <algorithm>

#include "core/cpu/ternary_kernel.h"
#include "core/cpu/vec.h"
#include "core/parallel.h"
#include "core/quantize.h"

namespace mmfree::cpu {
namespace {

/// A gradient in 8 bits by rows: codes [n, stride] with zeros behind each row, steps [n], and Σ codes of each row.
struct GradientRows {
  Tensor codes, steps, sums;
  int64_t stride;
};

/// Writes the codes of a row; returns its step, and the sum of the codes in `sum`.
template <class T>
T quantise_row(const T* row, int64_t o, int8_t* to, int32_t& sum) {
  const auto scale = gradient_scale(lane_absmax<T>(o, [row](int64_t k) { return row[k]; }));
  int32_t codes = 0;
#pragma omp simd reduction(+ : codes)
  for (int64_t k = 0; k < o; ++k) {
    const int32_t code = round_half_away(row[k] * scale.inverse);
    to[k] = int8_t(code), codes += code;
  }
  sum = codes;
  return scale.step;
}

template <class T>
GradientRows quantise_rows(const T* dy, int64_t n, int64_t o) {
  const int64_t stride = (o + 3) / 4 * 4;
  GradientRows out{Tensor({n, stride}, DType::i8), Tensor({n}, dtype_of<T>()), Tensor({n}, DType::i32), stride};
  int8_t* codes = out.codes.mut<int8_t>();
  T* steps = out.steps.mut<T>();
  int32_t* sums = out.sums.mut<int32_t>();
  parallel_for(n, 16, [=](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      int8_t* to = codes + r * stride;
      steps[r] = quantise_row(dy + r * o, o, to, sums[r]);
      std::fill(to + o, to + stride, int8_t(0));
    }
  });
  return out;
}

template <class T>
void dx(const TernaryDxInt8Args& p) {
  constexpr int64_t kRows = 128, kColumns = kTernaryBlock;
  const GradientRows g = quantise_rows(static_cast<const T*>(p.dy), p.n, p.o);
  const int8_t* q = g.codes.data<int8_t>();
  const T* steps = g.steps.data<T>();
  const int32_t* offsets = g.sums.data<int32_t>();
  const uint8_t* codes = static_cast<const uint8_t*>(p.codes);
  const T scale = *static_cast<const T*>(p.scale), beta = T(p.beta);
  const int64_t code_stride = ternary_row_bytes(p.k), down = (p.n + kRows - 1) / kRows;
  const TransposedKernel kernel = fastest_ternary_kernels().transposed;
  parallel_for(code_stride / kTernaryBlockBytes * down, 1, [=, &g](int64_t t, int64_t) {
    const int64_t r0 = t % down * kRows, block = t / down, rows = std::min(kRows, p.n - r0);
    const int64_t columns = std::min(kColumns, p.k - block * kColumns);
    alignas(64) int32_t sums[kRows * kColumns];
    kernel({q + r0 * g.stride, codes + block * kTernaryBlockBytes, sums, rows, p.o, g.stride, code_stride});
    for (int64_t r = 0; r < rows; ++r) {
      const T factor = steps[r0 + r] * scale;
      const int32_t offset = offsets[r0 + r], *from = sums + r * kColumns;
      T* to = static_cast<T*>(p.dx) + (r0 + r) * p.k + block * kColumns;
      if (beta == 0)
        for (int64_t c = 0; c < columns; ++c) to[c] = T(from[c] - offset) * factor;
      else
        for (int64_t c = 0; c < columns; ++c) to[c] = beta * to[c] + T(from[c] - offset) * factor;
    }
  });
}

constexpr int64_t kQuads = kGradientBlock / 4, kGroup = kGradientGroup;

/// A gradient times the steps of the activations in 8 bits, by channel and block of rows; see GradientBlock.
struct GradientBlocks {
  Tensor codes, scales, sums;  ///< [blocks, groups, kQuads, kGroup] i32; [blocks, groups * kGroup] P and i32
  int64_t blocks, groups;
};

/// Quantises one group of channels of one block of rows.
template <class T>
void quantise_group(const T* dy, const T* step, int64_t o, int64_t rows, int64_t channels, int32_t* codes, T* scales,
                    int32_t* sums) {
  T g[kGradientBlock][kGroup], inverse[kGroup], largest[kGroup] = {};
  if (rows < kGradientBlock || channels < kGroup) std::fill_n(g[0], kGradientBlock * kGroup, T(0));
  for (int64_t n = 0; n < rows; ++n)
    if (channels == kGroup)
      for (int64_t c = 0; c < kGroup; ++c) g[n][c] = dy[n * o + c] * step[n];
    else
      for (int64_t c = 0; c < channels; ++c) g[n][c] = dy[n * o + c] * step[n];
  for (int64_t n = 0; n < rows; ++n)
#pragma omp simd
    for (int64_t c = 0; c < kGroup; ++c) {
      const T size = std::abs(g[n][c]);
      largest[c] = size > largest[c] || size != size ? size : largest[c];  // keeps a NaN
    }
  for (int64_t c = 0; c < kGroup; ++c) {
    const auto scale = gradient_scale(largest[c]);
    inverse[c] = scale.inverse, scales[c] = scale.step, sums[c] = 0;
  }
  for (int64_t quad = 0; quad < kQuads; ++quad) {
    int32_t words[kGroup] = {};
    for (int i = 3; i >= 0; --i)
#pragma omp simd
      for (int64_t c = 0; c < kGroup; ++c) {
        const int32_t code = round_half_away(g[4 * quad + i][c] * inverse[c]);
        sums[c] += code;
        words[c] = int32_t(uint32_t(words[c]) << 8 | uint32_t(code & 255));
      }
    std::copy_n(words, kGroup, codes + quad * kGroup);
  }
}

template <class T>
GradientBlocks quantise_blocks(const TernaryDwInt8Args& p) {
  const int64_t blocks = (p.n + kGradientBlock - 1) / kGradientBlock, groups = (p.o + kGroup - 1) / kGroup;
  GradientBlocks out{Tensor({blocks, groups * kQuads * kGroup}, DType::i32),
                     Tensor({blocks, groups * kGroup}, dtype_of<T>()), Tensor({blocks, groups * kGroup}, DType::i32),
                     blocks, groups};
  int32_t *codes = out.codes.mut<int32_t>(), *sums = out.sums.mut<int32_t>();
  T* scales = out.scales.mut<T>();
  parallel_for(blocks * groups, 8, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / groups * kGradientBlock, o = i % groups * kGroup;
      quantise_group(static_cast<const T*>(p.dy) + n * p.o + o, static_cast<const T*>(p.step) + n, p.o,
                     std::min(kGradientBlock, p.n - n), std::min(kGroup, p.o - o), codes + i * kQuads * kGroup,
                     scales + i * kGroup, sums + i * kGroup);
    }
  });
  return out;
}

/// GradientBlock for values of any type: the scalar kernel.
template <class T>
void add_block(const GradientBlock& b, const T* scale, T* dw) {
  for (int64_t o = 0; o < b.outputs; ++o)
    for (int64_t c = 0; c < b.columns; ++c) {
      int32_t sum = 0;
      for (int64_t n = 0; n < b.rows; ++n) {
        const int32_t word = b.g[(o / kGroup * kQuads + n / 4) * kGroup + o % kGroup];
        sum += int8_t(uint32_t(word) >> (8 * (n % 4)) & 255) * b.x[n * b.x_stride + c];
      }
      dw[o * b.dw_stride + c] += T(sum) * scale[o];
    }
}

template <class T>
void dw(const TernaryDwInt8Args& p) {
  constexpr int64_t kOutputs = 8 * kGroup, kColumns = 128;
  const GradientBlocks g = quantise_blocks<T>(p);
  const int32_t *codes = g.codes.data<int32_t>(), *sums = g.sums.data<int32_t>();
  const T *scales = g.scales.data<T>(), beta = T(p.beta);
  const int64_t down = (p.o + kOutputs - 1) / kOutputs, across = (p.k + kColumns - 1) / kColumns;
  [[maybe_unused]] const GradientKernel kernel = fastest_ternary_kernels().gradient;
  parallel_for(down * across, 1, [=, &g](int64_t t, int64_t) {
    const int64_t o = t % down * kOutputs, k = t / down * kColumns;
    const int64_t outputs = std::min(kOutputs, p.o - o), columns = std::min(kColumns, p.k - k);
    T* to = static_cast<T*>(p.dw) + o * p.k + k;
    for (int64_t r = 0; r < outputs; ++r)
      for (int64_t c = 0; c < columns; ++c) to[r * p.k + c] = beta == 0 ? T(0) : beta * to[r * p.k + c];
    for (int64_t b = 0; b < g.blocks; ++b) {
      const int64_t n = b * kGradientBlock, at = b * g.groups * kGroup + o;
      GradientBlock block{p.q + n * p.k + k,
                          codes + at * kQuads,
                          nullptr,
                          sums + at,
                          nullptr,
                          std::min(kGradientBlock, p.n - n),
                          outputs,
                          columns,
                          p.k,
                          p.k};
      if constexpr (std::is_same_v<T, float>) {
        block.scale = scales + at, block.dw = to;
        kernel(block);
      } else {
        add_block(block, scales + at, to);
      }
    }
  });
}

}  // namespace

void transposed_tile_scalar(const TransposedTile& t) {
  for (int64_t r = 0; r < t.rows; ++r)
    for (int64_t c = 0; c < kTernaryBlock; ++c) {
      int32_t sum = 0;
      for (int64_t o = 0; o < t.depth; ++o)
        sum += (t.codes[o * t.code_stride + c % 32] >> (c / 32 * 2) & 3) * t.q[r * t.q_stride + o];
      t.out[r * kTernaryBlock + c] = sum;
    }
}

void gradient_block_scalar(const GradientBlock& b) { add_block(b, b.scale, b.dw); }

void gradient_rows(const GradientRowsArgs& p) {
  dispatch_float(p.type, "gradient_rows", [&]<class T>() {
    parallel_for(p.n, 16, [&](int64_t begin, int64_t end) {
      int32_t sum;
      for (int64_t r = begin; r < end; ++r)
        static_cast<T*>(p.steps)[r] = quantise_row(static_cast<const T*>(p.dy) + r * p.o, p.o, p.codes + r * p.o, sum);
    });
  });
}

void ternary_dx_int8(const TernaryDxInt8Args& p) {
  dispatch_float(p.type, "ternary_dx_int8", [&]<class T>() { dx<T>(p); });
}

void ternary_dw_int8(const TernaryDwInt8Args& p) {
  dispatch_float(p.type, "ternary_dw_int8", [&]<class T>() { dw<T>(p); });
}

}  // namespace mmfree::cpu
