#pragma once
#include "core/ops/adamw.h"
#include "core/ranks/group.h"

namespace mmfree {

/// How the ranks of a run divide flat buffers among them: each owns a piece of whole blocks. Pieces consist of parts,
/// so that what one part needs can run beside the exchange of another.
struct Share {
  Group* group = nullptr;          ///< null: this rank owns everything, in one part
  Bounds bounds = {};              ///< in elements, multiples of kParamBlock; none without a group
  std::vector<Ranges> parts = {};  ///< part i of each rank's piece, in multiples of kParamBlock

  size_t part_count() const { return group ? parts.size() : 1; }
  /// Part i of this rank's piece of a buffer of `size` elements, counted from the piece's begin.
  Range my_part(size_t i, int64_t size) const {
    if (!group) return {0, size};
    const Range& part = parts[i][size_t(group->rank())];
    return {part.begin - begin(), part.end - begin()};
  }
  int64_t begin() const { return group ? bounds[size_t(group->rank())] : 0; }
  int64_t end(int64_t size) const { return group ? bounds[size_t(group->rank()) + 1] : size; }
  /// This rank's piece of a flat buffer of `size` elements: how many, and the piece itself.
  int64_t count(int64_t size) const { return end(size) - begin(); }
  Tensor mine(const Tensor& flat) const { return group ? flat.slice(begin(), end(flat.size())) : flat; }
  /// The same of a buffer with one element per block.
  Tensor my_blocks(const Tensor& per_block) const {
    return group ? per_block.slice(begin() / kParamBlock, end(0) / kParamBlock) : per_block;
  }
  /// Zeros, where all_gather is fastest.
  Tensor zeros(const Shape& shape, DType dtype, Device device) const {
    return group ? group->zeros(shape, dtype, device) : Tensor::zeros(shape, dtype, device);
  }
  /// Each rank's piece of `per_block`, [P / kParamBlock], becomes everybody's.
  void gather_blocks(const std::vector<Tensor>& per_block) const {
    if (!group) return;
    Bounds blocks = bounds;
    for (int64_t& b : blocks) b /= kParamBlock;
    std::vector<Group::Gather> gathers;
    for (const Tensor& t : per_block) gathers.push_back({t, ranges_of(blocks)});
    group->all_gather(gathers);
  }
};

}  // namespace mmfree
