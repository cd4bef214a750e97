#include <algorithm>

#include "core/cuda/common.cuh"
#include "core/cuda/small_copies.h"

namespace mmfree::cuda {
namespace {

constexpr int kThreads = 256;
constexpr unsigned kBlocks = 32;  ///< of a copy: with 1 MiB at most each thread has up to eight packs of 16 bytes
constexpr size_t kMost = 64;      ///< copies of a launch

struct Copies {
  SmallCopy of[kMost];
};

/// Bytes from `begin` on, in units of T; gives where they end.
template <class T>
__device__ size_t copy_from(const SmallCopy& copy, size_t begin) {
  if ((reinterpret_cast<uintptr_t>(copy.to) | reinterpret_cast<uintptr_t>(copy.from)) % sizeof(T) != 0) return begin;
  const size_t end = copy.bytes / sizeof(T);
#pragma unroll 4
  for (size_t i = begin / sizeof(T) + blockIdx.x * kThreads + threadIdx.x; i < end; i += kBlocks * kThreads)
    static_cast<T*>(copy.to)[i] = static_cast<const T*>(copy.from)[i];
  return end * sizeof(T);
}

__global__ void __launch_bounds__(kThreads) copy(const __grid_constant__ Copies copies) {
  begin_kernel();
  const SmallCopy& mine = copies.of[blockIdx.y];
  const size_t large = copy_from<uint4>(mine, 0), middle = copy_from<uint2>(mine, large);
  copy_from<uint8_t>(mine, copy_from<uint32_t>(mine, middle));
}

}  // namespace

void make_copies(const std::vector<SmallCopy>& copies) {
  for (size_t first = 0; first < copies.size(); first += kMost) {
    const size_t count = std::min(kMost, copies.size() - first);
    Copies some{};
    std::copy_n(copies.begin() + std::ptrdiff_t(first), count, some.of);
    launch_kernel(copy, {.grid = {kBlocks, unsigned(count)}, .threads = kThreads}, some);
    check_launch("make_copies");
  }
}

}  // namespace mmfree::cuda
