#include "core/ops/embedding.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "core/cpu/table_row.h"
#include "core/parallel.h"
#include "core/quantize.h"

namespace mmfree::cpu {

namespace {

void check_ids(const int32_t* ids, int64_t n, int64_t v) {
  for (int64_t i = 0; i < n; ++i)
    MMFREE_CHECK(DataError, ids[i] >= 0 && ids[i] < v, "embedding: token id ", ids[i], " at position ", i,
                 " is outside 0..", v - 1, "; was the data prepared with another tokenizer?");
}

void store_int8(const float* x, int64_t d, int8_t* codes, float* step) {
  float absmax = 0;
  for (int64_t k = 0; k < d; ++k) absmax = std::max(absmax, std::abs(x[k]));
  const auto s = activation_scale(absmax);
  for (int64_t k = 0; k < d; ++k) codes[k] = activation_code(x[k], s.inverse);
  *step = s.step;
}

/// One group of `n` values, an even number.
void store_int4(const float* x, int64_t n, uint8_t* codes, bf16* scale) {
  float most = 0;
  for (int64_t k = 0; k < n; ++k) most = std::abs(x[k]) > std::abs(most) ? x[k] : most;
  *scale = bf16(most / -8);
  const float s = float(*scale);
  const auto code = [=](float value) {
    return s == 0 ? 8 : 8 + std::clamp(int(round_half_away(std::clamp(value / s, -9.0f, 9.0f))), -8, 7);
  };
  for (int64_t k = 0; k < n; k += 2) codes[k / 2] = uint8_t(code(x[k]) | code(x[k + 1]) << 4);
}

}  // namespace

void store_table(const float* table, const StoredTableArgs& g) {
  const int64_t groups = (g.d + kTableGroup - 1) / kTableGroup;
  parallel_for(g.v, 64, [&](int64_t begin, int64_t end) {
    for (int64_t v = begin; v < end; ++v) {
      const float* x = table + v * g.d;
      if (g.store == TableStore::int8) {
        store_int8(x, g.d, static_cast<int8_t*>(const_cast<void*>(g.codes)) + v * g.d,
                   static_cast<float*>(const_cast<void*>(g.scale)) + v);
        continue;
      }
      for (int64_t i = 0; i < groups; ++i)
        store_int4(x + i * kTableGroup, std::min(kTableGroup, g.d - i * kTableGroup),
                   static_cast<uint8_t*>(const_cast<void*>(g.codes)) + (v * g.d + i * kTableGroup) / 2,
                   static_cast<bf16*>(const_cast<void*>(g.scale)) + v * groups + i);
    }
  });
}

void stored_embedding(const StoredTableArgs& g) {
  check_ids(g.ids, g.n, g.v);
  parallel_for(g.n, 64, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) table_row(g, g.ids[n], g.y + n * g.d);
  });
}

void embedding(const EmbeddingArgs& g) {
  check_ids(g.ids, g.n, g.v);
  dispatch_float(g.dtype, "embedding", [&]<class T>() {
    parallel_for(g.n, 64, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n)
        std::copy_n(static_cast<const T*>(g.in) + g.ids[n] * g.d, g.d, static_cast<T*>(g.out) + n * g.d);
    });
  });
}

void embedding_backward(const EmbeddingArgs& g) {
  std::vector<int64_t> order(static_cast<size_t>(g.n));
  std::iota(order.begin(), order.end(), int64_t(0));
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return g.ids[a] < g.ids[b]; });
  dispatch_float(g.dtype, "embedding_backward", [&]<class T>() {
    T* table = static_cast<T*>(g.out);
    parallel_for(g.v, 1024, [&](int64_t begin, int64_t end) {
      T* rows = table + begin * g.d;
      if (g.beta == 0)
        std::fill_n(rows, (end - begin) * g.d, T(0));
      else if (g.beta != 1)
        for (int64_t i = 0; i < (end - begin) * g.d; ++i) rows[i] *= T(g.beta);
      auto it =
          std::lower_bound(order.begin(), order.end(), begin, [&](int64_t n, int64_t id) { return g.ids[n] < id; });
      for (; it != order.end() && g.ids[*it] < end; ++it) {  // ids below 0 or past the table are in no range
        T* to = table + g.ids[*it] * g.d;
        const T* from = static_cast<const T*>(g.in) + *it * g.d;
        for (int64_t k = 0; k < g.d; ++k) to[k] += from[k];
      }
    });
  });
}

}  // namespace mmfree::cpu
