#include "core/ops/ternary.h"

#include "core/dispatch.h"
#include "core/ops/matmul.h"

namespace mmfree {
namespace {

void check_float(const char* op, const Tensor& t, const char* name, DType expected) {
  MMFREE_CHECK(DTypeError, t.defined() && t.dtype() == expected && (expected == DType::f32 || expected == DType::f64),
               op, ": expected ", name, " of one dtype f32 or f64 with the others (", name_of(expected), "), got ",
               t.describe());
}

void check_matrix(const char* op, const TernaryTensor& w) {
  MMFREE_CHECK(DTypeError, w.codes.defined() && w.codes.dtype() == DType::u8, op, ": expected u8 codes, got ",
               w.codes.describe());
  MMFREE_CHECK(ShapeError, w.cols >= 0 && w.codes.cols() == ternary_row_bytes(w.cols), op, ": codes ", w.codes.shape(),
               " do not hold ", w.cols, " columns");
  MMFREE_CHECK(ShapeError, w.scale.size() == 1, op, ": expected one scale, got ", w.scale.shape());
  check_float(op, w.scale, "scale", w.scale.dtype());
  MMFREE_CHECK(DeviceError, w.codes.device() == w.scale.device(), op, ": codes and scale are on different devices");
}

void check_codes(const char* op, const Tensor& q, const Tensor& step) {
  MMFREE_CHECK(DTypeError, q.defined() && q.dtype() == DType::i8, op, ": expected i8 activations, got ", q.describe());
  MMFREE_CHECK(ShapeError, step.size() == q.rows(), op, ": expected one step per row of ", q.shape(), ", got ",
               step.shape());
  check_float(op, step, "step", step.dtype());
}

void check_device(const char* op, const Tensor& a, const Tensor& b) {
  MMFREE_CHECK(DeviceError, a.device() == b.device(), op, ": operands on different devices: ", a.describe(), ", ",
               b.describe());
}

void check_pack(const char* op, const Tensor& dense, const TernaryTensor& w, DType type) {
  check_matrix(op, w);
  check_float(op, dense, "weights", type);
  check_device(op, dense, w.codes);
  MMFREE_CHECK(ShapeError, dense.rows() == w.rows() && dense.cols() == w.cols, op, ": weights ", dense.shape(),
               " do not match the ternary matrix [", w.rows(), ", ", w.cols, "]");
}

}  // namespace

int64_t ternary_row_bytes(int64_t cols) { return (cols + kTernaryBlock - 1) / kTernaryBlock * kTernaryBlockBytes; }

TernaryTensor make_ternary(int64_t rows, int64_t cols, DType scale_dtype) {
  MMFREE_CHECK(DTypeError, scale_dtype == DType::f32 || scale_dtype == DType::f64,
               "make_ternary: expected a scale of f32 or f64, got ", name_of(scale_dtype));
  MMFREE_CHECK(ShapeError, rows >= 0 && cols >= 0, "make_ternary: negative extent in [", rows, ", ", cols, "]");
  return {Tensor({rows, ternary_row_bytes(cols)}, DType::u8), Tensor({1}, scale_dtype), cols};
}

void ternary_quantise(const Tensor& w, TernaryTensor& out) {
  check_pack("ternary_quantise", w, out, out.scale.dtype());
  const TernaryQuantiseArgs args{w.raw(), out.codes.mut<uint8_t>(), out.scale.raw_mut(), w.dtype(), out.rows(),
                                 out.cols};
  MMFREE_DISPATCH(w.device(), ternary_quantise, args);
}

void ternary_dequantise(const TernaryTensor& w, Tensor& out) {
  check_pack("ternary_dequantise", out, w, w.scale.dtype());
  const TernaryDequantiseArgs args{
      w.codes.data<uint8_t>(), w.scale.raw(), out.raw_mut(), out.dtype(), w.rows(), w.cols};
  MMFREE_DISPATCH(out.device(), ternary_dequantise, args);
}

void ternary_linear(const Tensor& q, const Tensor& step, const TernaryTensor& w, Tensor& y) {
  constexpr const char* op = "ternary_linear";
  check_matrix(op, w);
  check_codes(op, q, step);
  check_float(op, w.scale, "scale", step.dtype());
  check_float(op, y, "y", step.dtype());
  check_device(op, q, y);
  check_device(op, step, y);
  check_device(op, w.codes, y);
  MMFREE_CHECK(ShapeError, q.cols() == w.cols && y.rows() == q.rows() && y.cols() == w.rows(), op, ": ", q.shape(),
               " times the transpose of [", w.rows(), ", ", w.cols, "] does not give ", y.shape());
  MMFREE_CHECK(ShapeError, w.cols <= int64_t(1) << 23, op, ": ", w.cols, " columns overflow 32-bit sums");
  if (y.size() == 0) return;
  const TernaryLinearArgs args{q.data<int8_t>(), step.raw(),  w.codes.data<uint8_t>(),
                               w.scale.raw(),    y.raw_mut(), y.dtype(),
                               q.rows(),         w.rows(),    w.cols};
  MMFREE_DISPATCH(y.device(), ternary_linear, args);
}

void ternary_linear_dx(const Tensor& dy, const TernaryTensor& w, Tensor& dx, double beta) {
  constexpr const char* op = "ternary_linear_dx";
  check_matrix(op, w);
  check_float(op, dy, "dy", w.scale.dtype());
  check_float(op, dx, "dx", w.scale.dtype());
  MMFREE_CHECK(ShapeError, dy.cols() == w.rows() && dx.rows() == dy.rows() && dx.cols() == w.cols, op, ": ", dy.shape(),
               " times [", w.rows(), ", ", w.cols, "] does not give ", dx.shape());
  Tensor dense({w.rows(), w.cols}, dy.dtype(), dy.device());
  ternary_dequantise(w, dense);
  matmul(dy, false, dense, false, dx, 1, beta);
}

void ternary_linear_dw(const Tensor& dy, const Tensor& q, const Tensor& step, Tensor& dw, double beta) {
  constexpr const char* op = "ternary_linear_dw";
  check_codes(op, q, step);
  check_float(op, dy, "dy", step.dtype());
  check_float(op, dw, "dw", step.dtype());
  check_device(op, q, dw);
  check_device(op, step, dw);
  MMFREE_CHECK(ShapeError, dy.rows() == q.rows() && dw.rows() == dy.cols() && dw.cols() == q.cols(), op, ": ",
               dy.shape(), " transposed times ", q.shape(), " does not give ", dw.shape());
  Tensor u({q.rows(), q.cols()}, step.dtype(), q.device());
  const ScaleCodesArgs args{q.data<int8_t>(), step.raw(), u.raw_mut(), u.dtype(), q.rows(), q.cols()};
  MMFREE_DISPATCH(q.device(), scale_codes, args);
  matmul(dy, true, u, false, dw, 1, beta);
}

}  // namespace mmfree
