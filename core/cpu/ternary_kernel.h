#pragma once
#include <cstdint>

#if defined(__x86_64__)
#define MMFREE_X86 1
#else
#define MMFREE_X86 0
#endif
#if defined(__aarch64__)
#define MMFREE_ARM 1
#else
#define MMFREE_ARM 0
#endif

/// Integer products of ternary matrices, one kernel of each kind per instruction set. All of a kind give the same bits.
namespace mmfree::cpu {

/// Integer products of one tile: out[r, o] = Σ_k code[o, k] * q[r, k], exact. A kernel may also write the elements of a
/// row of `out` from `outputs` to `out_stride`.
struct TernaryTile {
  const int8_t* q;       ///< [rows, blocks * 128]
  const uint8_t* codes;  ///< [outputs, blocks * 32]
  int32_t* out;          ///< [rows, out_stride]
  int64_t rows, outputs, blocks;
  int64_t out_stride;  ///< at least `outputs` rounded up to a multiple of kTernaryOutputs
};
inline constexpr int64_t kTernaryOutputs = 16;
using TernaryKernel = void (*)(const TernaryTile&);

/// Products with the transposed matrix, for the 128 columns of one packed block:
/// out[r, c] = Σ_o code[o, c] * q[r, o], exact.
struct TransposedTile {
  const int8_t* q;       ///< [rows, q_stride]; zeros from `depth` on
  const uint8_t* codes;  ///< the block's 32 bytes in `depth` rows, code_stride bytes apart
  int32_t* out;          ///< [rows, 128]
  int64_t rows, depth;
  int64_t q_stride;  ///< at least `depth` rounded up to a multiple of 4
  int64_t code_stride;
};
using TransposedKernel = void (*)(const TransposedTile&);

/// Adds one block of at most 128 rows to a weight gradient: dw[o, c] += float(Σ_n g[n, o] * x[n, c]) * scale[o]; the
/// sum is exact, product and sum are rounded each.
struct GradientBlock {
  const int8_t* x;  ///< [rows, columns], rows x_stride bytes apart
  /// Gradient codes as 32-bit words: byte i of word [o / 16][quad][o % 16] is g[4 quad + i, o]. [.., 32, 16] words,
  /// zeros from `rows` on, and in the last group from `outputs` on.
  const int32_t* g;
  const float* scale;   ///< [outputs]
  const int32_t* sums;  ///< [outputs]: Σ_n g[n, o]
  float* dw;            ///< [outputs, columns], rows dw_stride elements apart
  int64_t rows, outputs, columns;
  int64_t x_stride, dw_stride;
};
inline constexpr int64_t kGradientGroup = 16;  ///< channels whose codes are stored together
using GradientKernel = void (*)(const GradientBlock&);

void ternary_tile_scalar(const TernaryTile& tile);
void transposed_tile_scalar(const TransposedTile& tile);
void gradient_block_scalar(const GradientBlock& block);
#if MMFREE_X86
void ternary_tile_avx2(const TernaryTile& tile);
void ternary_tile_avx512_vnni(const TernaryTile& tile);
void ternary_tile_avx_vnni(const TernaryTile& tile);
void transposed_tile_avx2(const TransposedTile& tile);
void transposed_tile_avx512_vnni(const TransposedTile& tile);
void transposed_tile_avx_vnni(const TransposedTile& tile);
void gradient_block_avx2(const GradientBlock& block);
void gradient_block_avx512_vnni(const GradientBlock& block);
void gradient_block_avx_vnni(const GradientBlock& block);
#endif
#if MMFREE_ARM
void ternary_tile_neon_dotprod(const TernaryTile& tile);
#endif

struct NamedTernaryKernel {
  const char* name;
  TernaryKernel kernel;
  TransposedKernel transposed;
  GradientKernel gradient;
  bool usable;  ///< this machine has the instruction set
};
/// The kernels of every instruction set of this build, fastest first; the last are the scalar ones.
inline constexpr int kTernaryKernels = MMFREE_X86 ? 4 : MMFREE_ARM ? 2 : 1;
const NamedTernaryKernel (&ternary_kernels())[kTernaryKernels];
/// The fastest of them that this machine has.
const NamedTernaryKernel& fastest_ternary_kernels();

}  // namespace mmfree::cpu
