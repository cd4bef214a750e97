#include "core/ops/tree_sum.h"

#include <algorithm>
#include <bit>
#include <vector>

#include "core/dtype.h"
#include "core/parallel.h"

namespace mmfree::cpu {
namespace {

/// Elements that are added at a time: the sums of all levels stay in a core's cache.
constexpr int64_t kGrain = 1 << 10;

template <class T>
void tree_sum(const TreeSumArgs& g) {
  const T *others = static_cast<const T*>(g.others), *mine = static_cast<const T*>(g.mine);
  T* out = static_cast<T*>(g.out);
  const int levels = std::countr_zero(uint64_t(g.count));
  parallel_for(g.n, kGrain, [&](int64_t begin, int64_t end) {
    const int64_t size = end - begin;
    std::vector<T> sums(size_t(levels + 1) * kGrain);  // of 2^k terms from k · kGrain on
    for (int64_t r = 0; r < g.count; ++r) {
      const T* term = (r == g.place ? mine : others + (r - (r > g.place)) * g.n) + begin;
      const int merges = std::countr_one(uint64_t(r));
      T* to = sums.data() + merges * kGrain;
      std::copy_n(term, size, to);
      for (int k = 0; k < merges; ++k)
        for (int64_t i = 0; i < size; ++i) to[i] = sums[size_t(k * kGrain + i)] + to[i];
    }
    std::copy_n(sums.data() + levels * kGrain, size, out + begin);
  });
}

}  // namespace

void tree_sum(const TreeSumArgs& g) {
  dispatch_float(g.dtype, "tree_sum", [&]<class T>() { tree_sum<T>(g); });
}

}  // namespace mmfree::cpu
