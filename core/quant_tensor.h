#pragma once
#include "core/tensor.h"

namespace mmfree {

/// The operands of the products in a projection's backward pass.
enum class Products {
  compute,  ///< as they are, in the dtype of the activations
  bf16,     ///< f32 values, rounded to bf16 first; sums in f32. On the CPU: on a GPU activations are bf16 already
  int8,     ///< of a ternary projection: gradients in 8 bits, sums of integers; see core/ops/ternary_int8.h
};

/// "compute", "bf16" or "int8"; "?" for an invalid value.
constexpr const char* name_of(Products p) {
  return p == Products::compute ? "compute" : p == Products::bf16 ? "bf16" : p == Products::int8 ? "int8" : "?";
}

/// Which elements of a quantised tensor share a scale.
enum class ScaleAxis {
  none,
  row,    ///< each row has one
  group,  ///< each kTableGroup columns of a row: embedding tables of 4 bits only, see core/ops/embedding.h
};

/// A tensor that may be quantised: value = values ⊙ scale. A plain tensor has no scale, and axis `none`.
struct QuantTensor {
  Tensor values;  ///< [N, K] i8 codes, or plain f32 | f64 | bf16
  Tensor scale;   ///< row: [N] f32 | f64; group: [N, groups] bf16; none: undefined
  ScaleAxis axis = ScaleAxis::none;
  /// The dtype A of activations: what is computed from this tensor, and its gradient, have it. It differs from the
  /// dtype of `values` where those are codes, and where values stay f32 under bf16 activations: the residual stream,
  /// and the input of an f32 projection.
  DType compute = DType::f32;

  QuantTensor() = default;
  QuantTensor(Tensor plain) : values(std::move(plain)), compute(values.dtype()) {}  // NOLINT: a plain tensor fits
  QuantTensor(Tensor plain, DType compute) : values(std::move(plain)), compute(compute) {}
  QuantTensor(Tensor codes, Tensor row_scale, DType compute)
      : values(std::move(codes)), scale(std::move(row_scale)), axis(ScaleAxis::row), compute(compute) {}
  bool quantised() const { return axis != ScaleAxis::none; }
};

}  // namespace mmfree
