#pragma once
#include <cstdint>

#if defined(__x86_64__)
#define MMFREE_X86 1
#else
#define MMFREE_X86 0
#endif

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

/// One kernel per instruction set; all give the same sums.
void ternary_tile_scalar(const TernaryTile& tile);
#if MMFREE_X86
void ternary_tile_avx2(const TernaryTile& tile);
void ternary_tile_avx512_vnni(const TernaryTile& tile);
void ternary_tile_avx_vnni(const TernaryTile& tile);
#endif

struct NamedTernaryKernel {
  const char* name;
  TernaryKernel kernel;
  bool usable;  ///< this machine has the instruction set
};
/// Every kernel of this build, fastest first; the last is the scalar one.
inline constexpr int kTernaryKernels = MMFREE_X86 ? 4 : 1;
const NamedTernaryKernel (&ternary_kernels())[kTernaryKernels];

}  // namespace mmfree::cpu
