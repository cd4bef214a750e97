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

/// The tree of `kTerms` packs that stand `stride` packs apart.
template <int kTerms, int N>
__device__ Pack<float, N> tree(const Pack<float, N>* terms, int64_t stride) {
  if constexpr (kTerms == 1) {
    return *terms;
  } else {
    Pack<float, N> left = tree<kTerms / 2, N>(terms, stride);
    const Pack<float, N> right = tree<kTerms / 2, N>(terms + kTerms / 2 * stride, stride);
#pragma unroll
    for (int k = 0; k < N; ++k) left.at[k] = __fadd_rn(left.at[k], right.at[k]);
    return left;
  }
}

template <int kTerms, int N>
__global__ void __launch_bounds__(kThreads) add_few(const Pack<float, N>* terms, Pack<float, N>* out, int64_t packs) {
  begin_kernel();
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < packs) out[i] = tree<kTerms, N>(terms + i, packs);
}

/// More than kGroup terms: sums of groups, merged as in a binary counter.
template <int N>
__global__ void __launch_bounds__(kThreads)
    add_many(const Pack<float, N>* terms, Pack<float, N>* out, int64_t groups, int64_t packs) {
  begin_kernel();
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= packs) return;
  Pack<float, N> sums[kLevels], sum;
  for (int64_t g = 0; g < groups; ++g) {
    sum = tree<kGroup, N>(terms + g * kGroup * packs + i, packs);
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
  const auto* terms = static_cast<const Pack<float, N>*>(g.terms);
  auto* out = static_cast<Pack<float, N>*>(g.out);
  const int64_t packs = g.n / N;
  const auto grid = unsigned(ceil_div(packs, kThreads));
  switch (g.count) {
    case 1:
      return launch_kernel(add_few<1, N>, {grid, kThreads}, terms, out, packs);
    case 2:
      return launch_kernel(add_few<2, N>, {grid, kThreads}, terms, out, packs);
    case 4:
      return launch_kernel(add_few<4, N>, {grid, kThreads}, terms, out, packs);
    case 8:
      return launch_kernel(add_few<8, N>, {grid, kThreads}, terms, out, packs);
    default:
      return launch_kernel(add_many<N>, {grid, kThreads}, terms, out, g.count / kGroup, packs);
  }
}

}  // namespace

void tree_sum(const TreeSumArgs& g) {
  MMFREE_CHECK(DTypeError, g.dtype == DType::f32, "tree_sum: expected f32 on a GPU, got ", name_of(g.dtype));
  if (g.n == 0) return;
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  if (g.n % 4 == 0 && aligned(g.terms) && aligned(g.out))
    add<4>(g);
  else
    add<1>(g);
  check_launch("tree_sum");
}

}  // namespace mmfree::cuda
