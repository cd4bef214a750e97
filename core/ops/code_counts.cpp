#include "core/ops/code_counts.h"

#include "core/dispatch.h"
#include "core/ops/check.h"
#include "core/ops/ternary_check.h"

namespace mmfree {

void ternary_code_counts(const TernaryTensor& w, Tensor& before, Tensor& counts) {
  constexpr const char* op = "ternary_code_counts";
  check_ternary(op, w);
  check_tensor(op, "before", before, {w.rows(), ternary_row_bytes(w.cols)}, DType::u8);
  check_tensor(op, "counts", counts, {3}, DType::i64);
  check_device(op, w.codes.device(), {&before, &counts});
  const TernaryCodeCountsArgs args{w.codes.raw(), before.mut<uint8_t>(), counts.mut<int64_t>(), w.rows(), w.cols};
  MMFREE_DISPATCH(w.codes.device(), ternary_code_counts, args);
}

void row_code_counts(const Tensor& q, Tensor& counts) {
  constexpr const char* op = "row_code_counts";
  MMFREE_CHECK(ShapeError, q.shape().rank() == 2, op, ": q must have 2 dimensions, got ", q.describe());
  check_tensor(op, "q", q, q.shape(), DType::i8);
  check_tensor(op, "counts", counts, {q.dim(0), 2}, DType::i64);
  check_device(op, q.device(), {&counts});
  const RowCodeCountsArgs args{q.data<int8_t>(), counts.mut<int64_t>(), q.dim(0), q.dim(1)};
  MMFREE_DISPATCH(q.device(), row_code_counts, args);
}

}  // namespace mmfree
