#pragma once
#include "core/tensor.h"

namespace mmfree {

/// The most terms of a tree_sum.
inline constexpr int64_t kMostTreeTerms = 2048;

/// out = Σ_r term r for each element, added as a balanced binary tree in the order of r: ((0 + 1) + (2 + 3)) + …. So
/// terms that are themselves such sums of parts give the sum that the tree of all parts gives, to the bit.
///
/// @param others  [(R − 1) · n] f32 | f64 (on a GPU f32): the terms but one, in their order, one behind the other; R a
///                power of two up to kMostTreeTerms
/// @param mine    [n] the same dtype: term `place`, 0 .. R − 1
/// @param out     [n] the same dtype; may be `mine`
/// @throws ShapeError, DTypeError, DeviceError
void tree_sum(const Tensor& others, const Tensor& mine, int64_t place, Tensor& out);

struct TreeSumArgs {
  const void *others, *mine;
  void* out;
  int64_t count, place, n;
  DType dtype;
};

namespace cpu {
void tree_sum(const TreeSumArgs&);
}
namespace cuda {
void tree_sum(const TreeSumArgs&);
}

}  // namespace mmfree
