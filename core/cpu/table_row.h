#pragma once
#include <algorithm>

#include "core/ops/embedding.h"

namespace mmfree::cpu {

/// Row `id` of a stored table as f32.
inline void table_row(const StoredTableArgs& g, int64_t id, float* y) {
  const int64_t at = id * g.d;
  switch (g.store) {
    case TableStore::f32:
      std::copy_n(static_cast<const float*>(g.codes) + at, g.d, y);
      return;
    case TableStore::bf16:
      for (int64_t k = 0; k < g.d; ++k) y[k] = float(static_cast<const bf16*>(g.codes)[at + k]);
      return;
    case TableStore::int8: {
      const float step = static_cast<const float*>(g.scale)[id];
      for (int64_t k = 0; k < g.d; ++k) y[k] = float(static_cast<const int8_t*>(g.codes)[at + k]) * step;
      return;
    }
    case TableStore::int4: {
      const uint8_t* codes = static_cast<const uint8_t*>(g.codes) + at / 2;
      const bf16* scale = static_cast<const bf16*>(g.scale) + id * ((g.d + kTableGroup - 1) / kTableGroup);
      for (int64_t k = 0; k < g.d; ++k)
        y[k] = float(int(codes[k / 2] >> (k % 2 * 4) & 15) - 8) * float(scale[k / kTableGroup]);
      return;
    }
  }
}

}  // namespace mmfree::cpu
