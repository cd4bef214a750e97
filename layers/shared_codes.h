#pragma once
#include <vector>

#include "core/ops/ternary.h"
#include "core/ranks/share.h"

namespace mmfree {

/// The ternary matrices of parameters that ranks divide: each rank computes those of its piece, part by part, and sends
/// the others the codes, at two bits each on every device, and the scales.
class SharedCodes {
 public:
  /// Makes room for the codes of `matrices`: every ternary matrix with its offset in the flat buffer, in that order.
  /// All codes of a part stand together, in the order of ranks.
  SharedCodes(const Share& share, const std::vector<TernaryJob>& matrices);
  /// Matrix i, in memory of this object.
  const TernaryTensor& matrix(size_t i) const { return matrices_[i]; }

  /// Computes this rank's matrices of a part from its piece of the parameters, and gives what the ranks then have to
  /// gather. abs_sums: of this rank's piece, as `ternary_quantise_flat` wants them, or undefined.
  std::vector<Group::Gather> offer(size_t part, const Tensor& values, const Tensor& abs_sums);
  /// After that: puts what others have sent in its place.
  void take(size_t part);

 private:
  void lay_out_packed();
  Tensor packed_of(size_t part, size_t r) const;
  Share share_;
  std::vector<TernaryTensor> matrices_;
  std::vector<std::vector<TernaryJob>> mine_;  ///< by part; offsets in this rank's piece
  std::vector<Bounds> code_bounds_;            ///< by part: of the ranks' codes in codes_
  std::vector<Ranges> scale_pieces_;           ///< by part: of the ranks' scales in scales_
  Tensor codes_;                               ///< CPU: u8, packed; GPU: i8, a code each
  Tensor packed_;                              ///< GPU: u8, those of codes_ at two bits: see packed_pieces_
  /// By part: where the ranks' codes are in packed_. All pieces of a part are as long as its longest one: NCCL, where
  /// it gathers them, has a faster way for that.
  std::vector<Ranges> packed_pieces_;
  Tensor scales_;  ///< in the order of matrices_
};

}  // namespace mmfree
