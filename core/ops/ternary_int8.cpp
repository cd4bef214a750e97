#include "core/ops/ternary_int8.h"

#include "core/dispatch.h"
#include "core/ops/ternary_check.h"

namespace mmfree {

void ternary_dx_int8(const Tensor& dy, const TernaryTensor& w, Tensor& dx, double beta) {
  constexpr const char* op = "ternary_dx_int8";
  check_ternary(op, w);
  check_activation(op, "dy", dy, w.scale.dtype());
  check_matrix(op, "dx", dx, dy.rows(), w.cols, dy.dtype());
  check_matrix(op, "dy", dy, dy.rows(), w.rows(), dy.dtype());
  check_device(op, dx.device(), {&dy, &w.codes});
  MMFREE_CHECK(ShapeError, w.rows() <= int64_t(1) << 23, op, ": ", w.rows(), " rows overflow 32-bit sums");
  if (dx.size() == 0) return;
  const TernaryDxInt8Args args{dy.raw(),  w.codes.raw(), w.scale.raw(), dx.raw_mut(), dy.dtype(),
                               dy.rows(), w.rows(),      w.cols,        beta};
  MMFREE_DISPATCH(dx.device(), ternary_dx_int8, args);
}

void ternary_dw_int8(const Tensor& dy, const Tensor& q, const Tensor& step, Tensor& dw, double beta) {
  constexpr const char* op = "ternary_dw_int8";
  check_codes(op, q, step);
  check_activation(op, "dy", dy, step.dtype());
  check_device(op, q.device(), {&dy, &step, &dw});
  MMFREE_CHECK(ShapeError, dy.rows() == q.rows(), op, ": ", dy.shape(), " transposed times ", q.shape(),
               " does not give ", dw.shape());
  check_matrix(op, "dw", dw, dy.cols(), q.cols(), step.dtype());
  if (dw.size() == 0) return;
  const TernaryDwInt8Args args{dy.raw(),  q.data<int8_t>(), step.raw(), dw.raw_mut(), dy.dtype(),
                               dy.rows(), dy.cols(),        q.cols(),   beta};
  MMFREE_DISPATCH(dw.device(), ternary_dw_int8, args);
}

}  // namespace mmfree
