#include "core/ops/embedding.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "core/parallel.h"

namespace mmfree::cpu {

void embedding(const EmbeddingArgs& g) {
  for (int64_t n = 0; n < g.n; ++n)
    MMFREE_CHECK(DataError, g.ids[n] >= 0 && g.ids[n] < g.v, "embedding: token id ", g.ids[n], " at position ", n,
                 " is outside 0..", g.v - 1, "; was the data prepared with another tokenizer?");
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
