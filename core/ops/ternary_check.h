#pragma once
#include "core/ops/check.h"
#include "core/ops/ternary.h"

/// Argument checks shared by the products of ternary matrices.
namespace mmfree {

inline void check_param(const char* op, const char* name, const Tensor& t) {
  MMFREE_CHECK(DTypeError, t.defined() && (t.dtype() == DType::f32 || t.dtype() == DType::f64), op, ": expected ", name,
               " of f32 or f64, got ", t.describe());
}

/// Checks dtype and [rows(), cols()], for any rank.
inline void check_matrix(const char* op, const char* name, const Tensor& t, int64_t rows, int64_t cols, DType dtype) {
  MMFREE_CHECK(DTypeError, t.defined() && t.dtype() == dtype, op, ": expected ", name, " of ", name_of(dtype), ", got ",
               t.describe());
  MMFREE_CHECK(ShapeError, t.rows() == rows && t.cols() == cols, op, ": expected ", name, " of [", rows, ", ", cols,
               "], got ", t.describe());
}

inline void check_ternary(const char* op, const TernaryTensor& w) {
  const bool packed = w.codes.device() == Device::cpu;
  const DType type = packed ? DType::u8 : DType::i8;
  MMFREE_CHECK(DTypeError, w.codes.defined() && w.codes.dtype() == type, op, ": expected ", name_of(type),
               " codes on this device, got ", w.codes.describe());
  MMFREE_CHECK(ShapeError, w.cols >= 0 && w.codes.cols() == (packed ? ternary_row_bytes(w.cols) : w.cols), op,
               ": codes ", w.codes.shape(), " do not hold ", w.cols, " columns");
  MMFREE_CHECK(ShapeError, w.scale.size() == 1, op, ": expected one scale, got ", w.scale.shape());
  check_param(op, "scale", w.scale);
  check_device(op, w.codes.device(), {&w.scale});
}

inline void check_codes(const char* op, const Tensor& q, const Tensor& step) {
  MMFREE_CHECK(DTypeError, q.defined() && q.dtype() == DType::i8, op, ": expected i8 activations, got ", q.describe());
  MMFREE_CHECK(ShapeError, step.size() == q.rows(), op, ": expected one step per row of ", q.shape(), ", got ",
               step.shape());
  check_param(op, "step", step);
}

/// Checks that t has a dtype A for parameters of dtype p: p itself, or bf16 for f32 on a GPU.
inline void check_activation(const char* op, const char* name, const Tensor& t, DType p) {
  const bool bf16 = p == DType::f32 && t.dtype() == DType::bf16 && t.device() == Device::cuda;
  MMFREE_CHECK(DTypeError, t.defined() && (t.dtype() == p || bf16), op, ": expected ", name, " of ", name_of(p),
               " (on a GPU also bf16), got ", t.describe());
}

}  // namespace mmfree
