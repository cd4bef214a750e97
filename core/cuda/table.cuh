#pragma once
#include "core/cuda/common.cuh"
#include "core/ops/embedding.h"

namespace mmfree::cuda {

/// Column k of row `id` of a table.
template <TableStore kStore>
__device__ inline float table_value(const StoredTableArgs& g, int64_t id, int64_t k) {
  const int64_t at = id * g.d + k;
  if constexpr (kStore == TableStore::f32) {
    return static_cast<const float*>(g.codes)[at];
  } else if constexpr (kStore == TableStore::bf16) {
    return to_float(static_cast<const Bf16*>(g.codes)[at]);
  } else if constexpr (kStore == TableStore::int8) {
    return float(static_cast<const int8_t*>(g.codes)[at]) * static_cast<const float*>(g.scale)[id];
  } else {
    const int both = static_cast<const uint8_t*>(g.codes)[at / 2];
    const int64_t groups = (g.d + kTableGroup - 1) / kTableGroup;
    return float((k % 2 ? both >> 4 : both & 15) - 8) *
           to_float(static_cast<const Bf16*>(g.scale)[id * groups + k / kTableGroup]);
  }
}
/// The same, of whatever store.
__device__ inline float table_value(const StoredTableArgs& g, int64_t id, int64_t k) {
  switch (g.store) {
    case TableStore::f32:
      return table_value<TableStore::f32>(g, id, k);
    case TableStore::bf16:
      return table_value<TableStore::bf16>(g, id, k);
    case TableStore::int8:
      return table_value<TableStore::int8>(g, id, k);
    default:
      return table_value<TableStore::int4>(g, id, k);
  }
}

}  // namespace mmfree::cuda
