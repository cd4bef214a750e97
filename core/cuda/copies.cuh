#pragma once
#include <cuda_runtime.h>

#include <cstdint>

/// Copies from global to shared memory that run while the thread goes on, and hints to the L2 cache.
namespace mmfree::cuda {

/// Starts a copy of 16 bytes; with `wanted` false it stores zeros and reads nothing.
__device__ inline void copy_async(void* to, const void* from, bool wanted = true) {
  const auto shared = uint32_t(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(wanted ? 16 : 0)
               : "memory");
}
/// Ends a group of copies; groups of a thread end in the order in which they began.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most `Left` groups of this thread are unfinished. Other threads need a barrier besides.
template <int Left>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
}

/// Asks for the line of 128 bytes at `from` in the L2 cache.
__device__ inline void prefetch(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }

/// sums += a · bᵀ on the tensor cores: 16 rows of a and 8 of b, 32 elements deep. Of a row lane/4 and lane/4 + 8, of b
/// row lane/4; a register has four elements, those of lane%4 first; a's second pair and b's second register are the
/// other half of the depth. Sums: rows lane/4 (first two) and lane/4 + 8, columns 2 (lane%4) and the next.
__device__ inline void multiply(int (&sums)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

}  // namespace mmfree::cuda
