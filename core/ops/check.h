#pragma once
#include "core/tensor.h"

/// Argument checks shared by the ops: one line that names op, argument, expectation and what came.
namespace mmfree {

inline void check_tensor(const char* op, const char* arg, const Tensor& t, const Shape& shape, DType dtype) {
  MMFREE_CHECK(ShapeError, t.defined() && t.shape() == shape, op, ": ", arg, " must be ", name_of(dtype), ' ', shape,
               ", got ", t.describe());
  MMFREE_CHECK(DTypeError, t.dtype() == dtype, op, ": ", arg, " must be ", name_of(dtype), ' ', shape, ", got ",
               t.describe());
}

/// As check_tensor, but an undefined tensor passes.
inline void check_optional(const char* op, const char* arg, const Tensor& t, const Shape& shape, DType dtype) {
  if (t.defined()) check_tensor(op, arg, t, shape, dtype);
}

/// Checks that t is a floating-point tensor of `rank` dimensions.
inline void check_float(const char* op, const char* arg, const Tensor& t, int rank) {
  MMFREE_CHECK(ShapeError, t.defined() && t.shape().rank() == rank, op, ": ", arg, " must have ", rank,
               " dimensions, got ", t.describe());
  MMFREE_CHECK(DTypeError, t.dtype() == DType::f32 || t.dtype() == DType::f64, op, ": ", arg,
               " must be f32 or f64, got ", t.describe());
}

}  // namespace mmfree
