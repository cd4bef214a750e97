#pragma once
#include <vector>

#include "core/tensor.h"

namespace mmfree {

/// Adds buffers, such as the gradients of leaves, in a balanced binary tree in their order: ((0 + 1) + (2 + 3)) + ….
/// Two subtrees are added as soon as both are there (a binary counter), so log2(count) sums are kept. Consecutive
/// aligned parts of the leaves, summed alone, are subtrees: the bits do not depend on who adds which part.
class LeafSums {
 public:
  /// For `count` buffers like `like`; a power of two. Its memory stays where it is.
  LeafSums(int64_t count, const Tensor& like);
  /// Takes the next buffer of `leaf` 0 .. count - 1, which is then free. After the last `buffer` holds the sum.
  void add(int64_t leaf, Tensor& buffer);

 private:
  int64_t count_;
  std::vector<Tensor> sums_;  ///< entry k: of 2^k buffers
};

}  // namespace mmfree
