#include "core/cuda/common.cuh"
#include "core/ops/tree_sum.h"

namespace mmfree::cuda {
namespace {

constexpr int kThreads = 256;
/// Terms that are added without a branch.
constexpr int kGroup = 8;
/// Levels of the tree above such groups.
constexpr int kLevels = 8;
static_assert(kMostTreeTerms == kGroup << kLevels);

/// The terms of `packs` packs each.
template <int N>
struct Terms {
  const Pack<float, N>*others, *mine;
  int place;
  int64_t packs;
  __device__ Pack<float, N> at(int r, int64_t i) const {
    return r == place ? mine[i] : others[(r - (r > place)) * packs + i];
  }
};

/// The tree of pack i of `kTerms` terms.
template <int kTerms, int N>
__device__ Pack<float, N> tree(const Terms<N>& terms, int first, int64_t i) {
  if constexpr (kTerms == 1) {
    return terms.at(first, i);
  } else {
    Pack<float, N> left = tree<kTerms / 2, N>(terms, first, i);
    const Pack<float, N> right = tree<kTerms / 2, N>(terms, first + kTerms / 2, i);
#pragma unroll
    for (int k = 0; k < N; ++k) left.at[k] = __fadd_rn(left.at[k], right.at[k]);
    return left;
  }
}

template <int kTerms, int N>
__global__ void __launch_bounds__(kThreads) add_few(Terms<N> terms, Pack<float, N>* out) {
  begin_kernel();
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < terms.packs) out[i] = tree<kTerms, N>(terms, 0, i);
}

/// More than kGroup terms: sums of groups, merged as in a binary counter.
template <int N>
__global__ void __launch_bounds__(kThreads) add_many(Terms<N> terms, Pack<float, N>* out, int groups) {
  begin_kernel();
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= terms.packs) return;
  Pack<float, N> sums[kLevels], sum;
  for (int g = 0; g < groups; ++g) {
    sum = tree<kGroup, N>(terms, g * kGroup, i);
    int level = 0;
    for (; g >> level & 1; ++level)
#pragma unroll
      for (int k = 0; k < N; ++k) sum.at[k] = __fadd_rn(sums[level].at[k], sum.at[k]);
    if (g + 1 < groups) sums[level] = sum;
  }
  out[i] = sum;
}

template <int N>
void add(const TreeSumArgs& g) {
  using P = Pack<float, N>;
  const Terms<N> terms{static_cast<const P*>(g.others), static_cast<const P*>(g.mine), int(g.place), g.n / N};
  auto* out = static_cast<P*>(g.out);
  const auto grid = unsigned(ceil_div(terms.packs, kThreads));
  switch (g.count) {
    case 1:
      return launch_kernel(add_few<1, N>, {grid, kThreads}, terms, out);
    case 2:
      return launch_kernel(add_few<2, N>, {grid, kThreads}, terms, out);
    case 4:
      return launch_kernel(add_few<4, N>, {grid, kThreads}, terms, out);
    case 8:
      return launch_kernel(add_few<8, N>, {grid, kThreads}, terms, out);
    default:
      return launch_kernel(add_many<N>, {grid, kThreads}, terms, out, int(g.count / kGroup));
  }
}

}  // namespace

void tree_sum(const TreeSumArgs& g) {
  MMFREE_CHECK(DTypeError, g.dtype == DType::f32, "tree_sum: expected f32 on a GPU, got ", name_of(g.dtype));
  if (g.n == 0) return;
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  if (g.n % 4 == 0 && aligned(g.others) && aligned(g.mine) && aligned(g.out))
    add<4>(g);
  else
    add<1>(g);
  check_launch("tree_sum");
}

}  // namespace mmfree::cuda
