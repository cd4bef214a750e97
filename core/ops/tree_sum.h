#pragma once
#include "core/tensor.h"

namespace mmfree {

/// The most terms of a tree_sum.
inline constexpr int64_t kMostTreeTerms = 2048;

/// out = Σ_r terms[r] for each element, added as a balanced binary tree in the order of r: ((0 + 1) + (2 + 3)) + …. So
/// terms that are themselves such sums of parts give the sum that the tree of all parts gives, to the bit.
///
/// @param terms  [R · n] f32 | f64 (on a GPU f32), term r from element r · n on; R a power of two up to kMostTreeTerms
/// @param out    [n] the same dtype
/// @throws ShapeError, DTypeError, DeviceError
void tree_sum(const Tensor& terms, int64_t count, Tensor& out);

struct TreeSumArgs {
  const void* terms;
  void* out;
  int64_t count, n;
  DType dtype;
};

namespace cpu {
void tree_sum(const TreeSumArgs&);
}
namespace cuda {
void tree_sum(const TreeSumArgs&);
}

}  // namespace mmfree
