#pragma once
#include "core/ops/adamw.h"
#include "core/ranks/group.h"

namespace mmfree {

/// How the ranks of a run divide flat buffers among them: each owns a piece of whole blocks.
struct Share {
  Group* group = nullptr;  ///< null: this rank owns everything
  Bounds bounds = {};      ///< in elements, multiples of kParamBlock; none without a group

  int64_t begin() const { return group ? bounds[size_t(group->rank())] : 0; }
  int64_t end(int64_t size) const { return group ? bounds[size_t(group->rank()) + 1] : size; }
  /// This rank's piece of a flat buffer of `size` elements: how many, and the piece itself.
  int64_t count(int64_t size) const { return end(size) - begin(); }
  Tensor mine(const Tensor& flat) const { return group ? flat.slice(begin(), end(flat.size())) : flat; }
  /// The same of a buffer with one element per block.
  Tensor my_blocks(const Tensor& per_block) const {
    return group ? per_block.slice(begin() / kParamBlock, end(0) / kParamBlock) : per_block;
  }
  /// Each rank's piece of `per_block`, [P / kParamBlock], becomes everybody's.
  void gather_blocks(Tensor per_block) const {
    if (!group) return;
    Bounds blocks = bounds;
    for (int64_t& b : blocks) b /= kParamBlock;
    group->all_gather(per_block, blocks);
  }
};

}  // namespace mmfree
