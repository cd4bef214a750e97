#pragma once
#include "core/tensor.h"

/// Argument checks shared by the ops. The message names op, argument, what was expected and what was given.
///
/// In the documentation of the ops A is the dtype of activations (f32 or f64 on the CPU, f32 or bf16 on a GPU) and P
/// that of parameters, statistics and scales: f64 where A is f64, else f32. All tensors of a call are on one device.
namespace mmfree {

/// P for an activation dtype A.
constexpr DType param_dtype(DType a) { return a == DType::f64 ? DType::f64 : DType::f32; }

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

/// Checks that t is a floating-point tensor of `rank` dimensions: f32, f64, or on a GPU bf16.
inline void check_float(const char* op, const char* arg, const Tensor& t, int rank) {
  MMFREE_CHECK(ShapeError, t.defined() && t.shape().rank() == rank, op, ": ", arg, " must have ", rank,
               " dimensions, got ", t.describe());
  const bool bf16 = t.dtype() == DType::bf16 && t.device() == Device::cuda;
  MMFREE_CHECK(DTypeError, t.dtype() == DType::f32 || t.dtype() == DType::f64 || bf16, op, ": ", arg,
               " must be f32 or f64, or bf16 on a GPU, got ", t.describe());
}

/// Checks that every defined tensor of `all` is on `device`.
inline void check_device(const char* op, Device device, std::initializer_list<const Tensor*> all) {
  for (const Tensor* t : all)
    MMFREE_CHECK(DeviceError, !t->defined() || t->device() == device, op,
                 ": operands on different devices: ", t->describe(), " among tensors on ", name_of(device));
}

}  // namespace mmfree
