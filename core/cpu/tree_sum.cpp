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
void tree_sum(const T* terms, T* out, int64_t count, int64_t n) {
  const int levels = std::countr_zero(uint64_t(count));
  parallel_for(n, kGrain, [=](int64_t begin, int64_t end) {
    const int64_t size = end - begin;
    std::vector<T> sums(size_t(levels + 1) * kGrain);  // of 2^k terms from k · kGrain on
    for (int64_t r = 0; r < count; ++r) {
      const T* term = terms + r * n + begin;
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
  dispatch_float(g.dtype, "tree_sum",
                 [&]<class T>() { tree_sum(static_cast<const T*>(g.terms), static_cast<T*>(g.out), g.count, g.n); });
}

}  // namespace mmfree::cpu
