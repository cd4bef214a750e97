#include "core/ops/ternary.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/cpu/abs_sum.h"
#include "core/cpu/ternary_kernel.h"
#include "core/ops/adamw.h"
#include "core/parallel.h"
#include "core/quantize.h"
#if MMFREE_X86
#include <cpuid.h>
#endif
#if MMFREE_ARM
#include <sys/auxv.h>
#endif

namespace mmfree::cpu {
namespace {

/// Size of an output tile. With few rows it is wide, so that a task has enough work; otherwise it is tall, so that
/// codes, unpacked once, serve many rows.
struct OutputTile {
  static constexpr int64_t kElements = 16384;
  int64_t rows, outputs;
  explicit OutputTile(int64_t n) : rows(n < 64 ? 64 : 256), outputs(kElements / rows) {}
};

/// `sums`: Σ |w| of each kParamBlock elements; null: computed here.
template <class T>
void quantise(const TernaryQuantiseArgs& p, const double* sums) {
  const T* w = static_cast<const T*>(p.weights);
  const int64_t n = p.rows * p.cols;
  const double total = ordered_sum(n, kParamBlock, [=](int64_t begin, int64_t end) {
    return sums ? sums[begin / kParamBlock] : sum_abs(w + begin, end - begin);
  });
  const T scale = weight_scale<T>(n ? total / double(n) : 0);
  *static_cast<T*>(p.scale) = scale;
  const T inverse = T(1) / scale;
  const int64_t row_bytes = ternary_row_bytes(p.cols);
  parallel_for(p.rows, 16, [=](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o)
      for (int64_t b = 0; b < row_bytes / kTernaryBlockBytes; ++b) {
        uint8_t codes[kTernaryBlock];
        std::memset(codes, 1, sizeof codes);
        const int64_t first = b * kTernaryBlock, count = std::min(kTernaryBlock, p.cols - first);
        for (int64_t k = 0; k < count; ++k) codes[k] = uint8_t(1 + weight_code(w[o * p.cols + first + k], inverse));
        uint8_t* packed = static_cast<uint8_t*>(p.codes) + o * row_bytes + b * kTernaryBlockBytes;
        for (int j = 0; j < 32; ++j)
          packed[j] = uint8_t(codes[j] | codes[j + 32] << 2 | codes[j + 64] << 4 | codes[j + 96] << 6);
      }
  });
}

template <class T>
void dequantise(const TernaryDequantiseArgs& p) {
  const T scale = p.scale ? *static_cast<const T*>(p.scale) : T(1);
  const uint8_t* codes = static_cast<const uint8_t*>(p.codes);
  const int64_t row_bytes = ternary_row_bytes(p.cols);
  parallel_for(p.rows, 16, [=](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o)
      for (int64_t first = 0; first < p.cols; first += 32) {
        const uint8_t* packed = codes + o * row_bytes + first / kTernaryBlock * kTernaryBlockBytes;
        const int shift = int(first % kTernaryBlock / 32) * 2;
        T* out = static_cast<T*>(p.weights) + o * p.cols + first;
        const int64_t count = std::min<int64_t>(32, p.cols - first);
        for (int64_t j = 0; j < count; ++j) out[j] = T((packed[j] >> shift & 3) - 1) * scale;
      }
  });
}

#if MMFREE_X86
/// Asks CPUID, because not every compiler's __builtin_cpu_supports knows "avxvnni".
bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __builtin_cpu_supports("avx2") && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
#endif

/// Σ_k q[r, k]. A code is weight + 1, so Σ weight·q = Σ code·q − Σ q.
Tensor sum_rows(const int8_t* q, int64_t n, int64_t k) {
  Tensor out({n}, DType::i32);
  int32_t* sums = out.mut<int32_t>();
  parallel_for(n, 64, [=](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      int32_t sum = 0;
      for (int64_t i = 0; i < k; ++i) sum += q[r * k + i];
      sums[r] = sum;
    }
  });
  return out;
}

/// Copies rows, padded with zeros to whole blocks. A product of the padding is 0, whatever the code.
Tensor pad_rows(const int8_t* q, int64_t n, int64_t k, int64_t padded) {
  Tensor out({n, padded}, DType::i8);
  int8_t* to = out.mut<int8_t>();
  parallel_for(n, 64, [=](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      std::memcpy(to + r * padded, q + r * k, size_t(k));
      std::memset(to + r * padded + k, 0, size_t(padded - k));
    }
  });
  return out;
}

template <class T>
void linear(const TernaryLinearArgs& p) {
  const int64_t row_bytes = ternary_row_bytes(p.k), blocks = row_bytes / kTernaryBlockBytes;
  const int64_t padded = blocks * kTernaryBlock;
  Tensor scratch;
  const int8_t* q = p.q;
  if (padded != p.k) {
    scratch = pad_rows(p.q, p.n, p.k, padded);
    q = scratch.data<int8_t>();
  }
  const T scale = *static_cast<const T*>(p.scale);
  const T* step = static_cast<const T*>(p.step);
  const uint8_t* codes = static_cast<const uint8_t*>(p.codes);
  T* y = static_cast<T*>(p.y);
  const Tensor q_sums = sum_rows(p.q, p.n, p.k);
  const int32_t* offsets = q_sums.data<int32_t>();
  const TernaryKernel kernel = fastest_ternary_kernels().kernel;
  const OutputTile tile(p.n);
  const int64_t across = (p.o + tile.outputs - 1) / tile.outputs, down = (p.n + tile.rows - 1) / tile.rows;
  parallel_for(across * down, 1, [=](int64_t t, int64_t) {
    const int64_t r0 = t % down * tile.rows, o0 = t / down * tile.outputs;
    const int64_t rows = std::min(tile.rows, p.n - r0), outputs = std::min(tile.outputs, p.o - o0);
    alignas(64) int32_t sums[OutputTile::kElements];
    kernel({q + r0 * padded, codes + o0 * row_bytes, sums, rows, outputs, blocks, tile.outputs});
    for (int64_t r = 0; r < rows; ++r) {
      const T factor = step[r0 + r] * scale;
      const int32_t offset = offsets[r0 + r];
      const int32_t* from = sums + r * tile.outputs;
      T* to = y + (r0 + r) * p.o + o0;
      for (int64_t o = 0; o < outputs; ++o) to[o] = T(from[o] - offset) * factor;
    }
  });
}

}  // namespace

const NamedTernaryKernel (&ternary_kernels())[kTernaryKernels] {
  static const NamedTernaryKernel kernels[kTernaryKernels] = {
#if MMFREE_X86
    {"avx512_vnni", ternary_tile_avx512_vnni, transposed_tile_avx512_vnni, gradient_block_avx512_vnni,
     __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")},
    {"avx_vnni", ternary_tile_avx_vnni, transposed_tile_avx_vnni, gradient_block_avx_vnni, has_avx_vnni()},
    {"avx2", ternary_tile_avx2, transposed_tile_avx2, gradient_block_avx2, bool(__builtin_cpu_supports("avx2"))},
#endif
#if MMFREE_ARM
    {"neon_dotprod", ternary_tile_neon_dotprod, transposed_tile_scalar, gradient_block_scalar,
     (getauxval(AT_HWCAP) >> 20 & 1) != 0},  // HWCAP_ASIMDDP
#endif
    {"scalar", ternary_tile_scalar, transposed_tile_scalar, gradient_block_scalar, true}
  };
  return kernels;
}

const NamedTernaryKernel& fastest_ternary_kernels() {
  static const NamedTernaryKernel& fastest =
      *std::find_if(std::begin(ternary_kernels()), std::end(ternary_kernels()), [](const auto& k) { return k.usable; });
  return fastest;
}

void ternary_tile_scalar(const TernaryTile& t) {
  for (int64_t r = 0; r < t.rows; ++r)
    for (int64_t o = 0; o < t.outputs; ++o) {
      int32_t sum = 0;
      for (int64_t b = 0; b < t.blocks; ++b)
        for (int plane = 0; plane < 4; ++plane) {
          const int8_t* q = t.q + (r * t.blocks + b) * kTernaryBlock + plane * 32;
          const uint8_t* codes = t.codes + (o * t.blocks + b) * kTernaryBlockBytes;
          for (int j = 0; j < 32; ++j) sum += (codes[j] >> (2 * plane) & 3) * q[j];
        }
      t.out[r * t.out_stride + o] = sum;
    }
}

void ternary_quantise(const TernaryQuantiseArgs& p) {
  dispatch_float(p.type, "ternary_quantise", [&]<class T>() { quantise<T>(p, nullptr); });
}

void ternary_quantise_flat(const TernaryQuantiseFlatArgs& p) {
  dispatch_float(p.type, "ternary_quantise_flat", [&]<class T>() {
    for (const auto& job : p.jobs)
      quantise<T>({static_cast<const T*>(p.values) + job.offset, job.codes, job.scale, p.type, job.rows, job.cols},
                  p.abs_sums ? p.abs_sums + job.offset / kParamBlock : nullptr);
  });
}

void ternary_dequantise(const TernaryDequantiseArgs& p) {
  dispatch_float(p.type, "ternary_dequantise", [&]<class T>() { dequantise<T>(p); });
}

void ternary_linear(const TernaryLinearArgs& p) {
  dispatch_float(p.type, "ternary_linear", [&]<class T>() { linear<T>(p); });
}

void scale_codes(const ScaleCodesArgs& p) {
  dispatch_float(p.type, "scale_codes", [&]<class T>() {
    parallel_for(p.n, 64, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const T step = static_cast<const T*>(p.step)[r];
        T* u = static_cast<T*>(p.u) + r * p.k;
        for (int64_t k = 0; k < p.k; ++k) u[k] = T(p.q[r * p.k + k]) * step;
      }
    });
  });
}

}  // namespace mmfree::cpu
