#pragma once
#include <optional>
#include <vector>

#include "autograd/parameter.h"
#include "core/gpu.h"

namespace mmfree {

/// Adds the gradients of all ranks in the order of ranks as a balanced tree: each rank's are a subtree of the leaves'
/// tree, so the bits do not depend on the number of ranks. Each rank adds a piece, its own if the store is divided.
///
/// Ranges of the flat buffer are added one by one, as the backward pass completes them. On a GPU that happens on a
/// stream of its own: there the pieces of a range are exchanged and added while the backward pass goes on, and `finish`
/// is where it waits.
class RankSums {
 public:
  RankSums(ParamStore& params, Group& group);
  /// Starts to add elements [begin, end), whole blocks, of `gradients` [P], to which nobody writes any more. Sums go to
  /// params.grads(): of this rank's piece if the store is divided, else all.
  void add(const Tensor& gradients, int64_t begin, int64_t end);
  /// Later work may use the sums of all ranges.
  void finish();

 private:
  void add_range(Tensor range, int64_t begin, const Bounds& bounds, Tensor pieces);
  ParamStore& params_;
  Group& group_;
  Bounds bounds_;  ///< of the ranks' pieces
  std::optional<gpu::SideStream> side_;
  std::vector<Tensor> received_;  ///< what is in use until `finish`
};

}  // namespace mmfree
