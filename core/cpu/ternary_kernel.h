#pragma once
#include <cstdint>

namespace mmfree::cpu {

/// Raw integer products of one tile: out[r * outputs + o] = sum_k code[o, k] * q[r, k], exact.
struct TernaryTile {
  const int8_t* q;       ///< [rows, blocks * 128]
  const uint8_t* codes;  ///< [outputs, blocks * 32]
  int32_t* out;          ///< [rows, outputs]
  int64_t rows, outputs, blocks;
};
using TernaryKernel = void (*)(const TernaryTile&);

void ternary_tile_scalar(const TernaryTile& tile);

}  // namespace mmfree::cpu
