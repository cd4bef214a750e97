#include "core/ops/ternary_int8.h"

#include <algorithm>

#include "core/dispatch.h"
#include "core/ops/ternary_check.h"

namespace mmfree {

namespace {

void check_rows(const char* op, const QuantTensor& rows, int64_t n, int64_t o, DType a) {
  check_matrix(op, "rows", rows.values, n, o, DType::i8);
  check_matrix(op, "steps", rows.scale, 1, n, param_dtype(a));
  check_device(op, rows.values.device(), {&rows.scale});
}

}  // namespace

QuantTensor make_gradient_rows(int64_t n, int64_t o, DType compute, Device device) {
  return {Tensor({n, o}, DType::i8, device), Tensor({n}, param_dtype(compute), device), compute};
}

void gradient_rows(const Tensor& dy, QuantTensor& rows) {
  constexpr const char* op = "gradient_rows";
  check_activation(op, "dy", dy, dy.defined() ? param_dtype(dy.dtype()) : DType::f32);
  check_rows(op, rows, dy.rows(), dy.cols(), dy.dtype());
  check_device(op, dy.device(), {&rows.values});
  const GradientRowsArgs args{dy.raw(), rows.values.mut<int8_t>(), rows.scale.raw_mut(), dy.dtype(), dy.rows(),
                              dy.cols()};
  MMFREE_DISPATCH(dy.device(), gradient_rows, args);
}

void ternary_dx_int8(const Gradient& dy, const TernaryTensor& w, Tensor& dx, double beta) {
  constexpr const char* op = "ternary_dx_int8";
  check_ternary(op, w);
  const int64_t n = dy.count();
  check_activation(op, "dx", dx, w.scale.dtype());
  check_matrix(op, "dx", dx, n, w.cols, dx.dtype());
  const bool takes_rows = dx.device() == Device::cuda;
  if (!takes_rows || !dy.has_rows()) check_matrix(op, "dy", dy.values, n, w.rows(), dx.dtype());
  MMFREE_CHECK(ShapeError, w.rows() <= int64_t(1) << 23, op, ": ", w.rows(), " rows overflow 32-bit sums");
  check_device(op, dx.device(), {&dy.values, &w.codes});
  if (dx.size() == 0) return;
  TernaryDxInt8Args args{dy.values.raw(), nullptr,    nullptr, nullptr,  w.codes.raw(), w.scale.raw(),
                         dx.raw_mut(),    dx.dtype(), n,       w.rows(), w.cols,        beta};
  QuantTensor rows = dy.rows;
  Tensor turned;
  if (takes_rows) {
    if (!dy.has_rows()) {
      rows = make_gradient_rows(n, w.rows(), dx.dtype(), dx.device());
      gradient_rows(dy.values, rows);
    }
    check_rows(op, rows, n, w.rows(), dx.dtype());
    check_device(op, dx.device(), {&rows.values});
    turned = Tensor({w.cols, w.rows()}, DType::i8, dx.device());
    args.rows = rows.values.data<int8_t>(), args.steps = rows.scale.raw(), args.turned = turned.mut<int8_t>();
  }
  MMFREE_DISPATCH(dx.device(), ternary_dx_int8, args);
}

/// The number with the least work of the busiest of 66 clusters of multiprocessors, those of an H100, which compute
/// tiles of 256 x 256. A part costs two blocks more: its sums are stored and added.
int activation_parts(int64_t o, int64_t k, int64_t n) {
  constexpr int64_t kClusters = 66, kTile = 256, kMost = 16;
  const auto up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t tiles = up(o, kTile) * up(k, kTile), blocks = up(n, kActivationBlock);
  int64_t best = 1, least = INT64_MAX;
  for (int64_t parts = 1; parts <= std::min(kMost, blocks); ++parts) {
    const int64_t work = up(tiles * parts, kClusters) * (up(blocks, parts) + 2);
    if (work < least) least = work, best = parts;
  }
  return int(best);
}

void ternary_dw_int8(const Gradient& dy, const Tensor& q, const Tensor& step, Tensor& dw, double beta) {
  constexpr const char* op = "ternary_dw_int8";
  check_codes(op, q, step);
  const bool takes_rows = q.device() == Device::cuda;
  const int64_t n = q.rows(), k = q.cols(), o = dy.width();
  if (!takes_rows || !dy.has_rows()) check_activation(op, "dy", dy.values, step.dtype());
  check_device(op, q.device(), {&dy.values, &step, &dw});
  MMFREE_CHECK(ShapeError, dy.count() == n, op, ": a gradient of ", dy.count(), " rows transposed times ", q.shape(),
               " does not give ", dw.shape());
  check_matrix(op, "dw", dw, o, k, step.dtype());
  if (dw.size() == 0) return;
  TernaryDwInt8Args args{
      dy.values.raw(), nullptr, nullptr, q.data<int8_t>(), step.raw(), dw.raw_mut(), dw.dtype(), n, o, k, beta,
      nullptr,         nullptr, nullptr};
  QuantTensor rows = dy.rows;
  Tensor blocks, scales, parts;
  if (takes_rows) {
    if (!dy.has_rows()) {
      rows = make_gradient_rows(n, o, dy.dtype(), q.device());
      gradient_rows(dy.values, rows);
    }
    check_rows(op, rows, n, o, rows.compute);
    check_device(op, q.device(), {&rows.values});
    const int64_t count = (n + kActivationBlock - 1) / kActivationBlock, more = activation_parts(o, k, n) - 1;
    blocks = Tensor({k, count * kActivationBlock}, DType::i8, q.device());
    scales = Tensor({count, scale_stride(k)}, DType::f32, q.device());
    if (more > 0) parts = Tensor({more, o, k}, DType::f32, q.device());
    args.rows = rows.values.data<int8_t>(), args.row_steps = rows.scale.raw(), args.blocks = blocks.mut<int8_t>();
    args.scales = scales.mut<float>(), args.parts = parts.defined() ? parts.mut<float>() : nullptr;
  }
  MMFREE_DISPATCH(q.device(), ternary_dw_int8, args);
}

}  // namespace mmfree
