#pragma once
#include "core/tensor.h"

namespace mmfree {

/// Which elements of a quantised tensor share a scale.
enum class ScaleAxis { none, row };

/// A tensor that may be quantised: value ≈ values ⊙ scale. Plain values have no scale and axis `none`.
struct QuantTensor {
  Tensor values;  ///< [N, K] i8 codes, or plain f32 | f64
  Tensor scale;   ///< row: [N] f32 | f64; none: undefined
  ScaleAxis axis = ScaleAxis::none;

  QuantTensor() = default;
  QuantTensor(Tensor plain) : values(std::move(plain)) {}  // NOLINT: a plain tensor is a QuantTensor without scale
  QuantTensor(Tensor codes, Tensor row_scale)
      : values(std::move(codes)), scale(std::move(row_scale)), axis(ScaleAxis::row) {}
  bool quantised() const { return axis != ScaleAxis::none; }
  /// The dtype that products of this tensor are computed in.
  DType compute_dtype() const { return quantised() ? scale.dtype() : values.dtype(); }
};

}  // namespace mmfree
