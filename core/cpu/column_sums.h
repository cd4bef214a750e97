#pragma once
#include <cstdint>

#include "core/parallel.h"
#include "core/tensor.h"

namespace mmfree::cpu {

/// Sums over the rows of a matrix: a partial sum for each block of 64 rows, added in index order, so the bits do not
/// depend on the number of threads. Row kernels add to `partial(block, which)`; `finish` adds the blocks up.
template <class T>
class ColumnSums {
 public:
  static constexpr int64_t kRows = 64;
  ColumnSums(int64_t n, int64_t d, int64_t count)
      : d_(d),
        count_(count),
        blocks_((n + kRows - 1) / kRows),
        sums_(Tensor::zeros({blocks_ * count * d}, dtype_of<T>())),
        data_(sums_.template mut<T>()) {}

  T* partial(int64_t block, int64_t which) { return data_ + (block * count_ + which) * d_; }

  /// out[d] = beta * out[d] + Σ_blocks; does nothing when out is null.
  void finish(int64_t which, T* out, double beta) const {
    if (!out) return;
    parallel_for(d_, 256, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) out[j] = beta == 0 ? T(0) : T(beta) * out[j];
      for (int64_t b = 0; b < blocks_; ++b) {
        const T* in = data_ + (b * count_ + which) * d_;
        for (int64_t j = begin; j < end; ++j) out[j] += in[j];
      }
    });
  }

 private:
  int64_t d_, count_, blocks_;
  Tensor sums_;
  T* data_;
};

}  // namespace mmfree::cpu
