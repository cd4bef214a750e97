#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

/// Device memory and errors of the benchmark.
namespace mmfree::int8_backward {

using Bf16 = __nv_bfloat16;

/// Ends the program if a call of CUDA or cuBLASLt failed.
inline void ok(int status, const char* what) {
  if (status == 0) return;
  std::fprintf(stderr, "%s: error %d\n", what, status);
  std::exit(2);
}
#define OK(call) ok(int(call), #call)

/// Device memory of `size` elements.
template <class T>
struct Buffer {
  T* data = nullptr;
  size_t size;
  explicit Buffer(size_t n) : size(n) {
    OK(cudaMalloc(reinterpret_cast<void**>(&data), std::max<size_t>(n, 1) * sizeof(T)));
  }
  ~Buffer() { cudaFree(data); }
  Buffer(const Buffer&) = delete;
  void poison() { OK(cudaMemset(data, 0xff, size * sizeof(T))); }
};

/// x rounded up to a multiple of `to`.
constexpr int64_t up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

}  // namespace mmfree::int8_backward
