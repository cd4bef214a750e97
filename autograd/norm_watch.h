#pragma once
#include "core/ops/linear.h"

namespace mmfree {

/// Sees the rounded inputs of projections as a forward pass computes them.
class NormWatch {
 public:
  virtual ~NormWatch() = default;
  /// `codes`: [N, K] with a step for each row. `matrix`: what the rows are multiplied by, or the first matrix of
  /// several; null for norm_quant, which multiplies nothing: the norm in front of the head. `rstd`: [N] P, reciprocal
  /// root mean squares of the rows that the norm reads; undefined if there is no norm.
  virtual void rounded(const WeightMatrix* matrix, const QuantTensor& codes, const Tensor& rstd) = 0;
};

/// Who sees them on this thread; null: nobody.
inline thread_local NormWatch* norm_watch = nullptr;

}  // namespace mmfree
