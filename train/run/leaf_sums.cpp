#include "train/run/leaf_sums.h"

#include <bit>

#include "core/ops/elementwise.h"

namespace mmfree {

LeafSums::LeafSums(int64_t count, const Tensor& like) : count_(count) {
  MMFREE_CHECK(Error, std::has_single_bit(uint64_t(count)), "leaves: ", count, " is no power of two");
  for (int64_t held = 1; held < count; held *= 2) sums_.emplace_back(like.shape(), like.dtype(), like.device());
}

void LeafSums::add(int64_t leaf, Tensor& buffer) {
  const bool last = leaf + 1 == count_;
  const auto merges = size_t(std::countr_one(uint64_t(leaf)));
  if (merges == 0 && !last) return sums_[0].copy_from(buffer);
  for (size_t k = 0; k < merges; ++k) mmfree::add(sums_[k], buffer, k + 1 == merges && !last ? sums_[merges] : buffer);
}

}  // namespace mmfree
