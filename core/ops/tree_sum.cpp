#include "core/ops/tree_sum.h"

#include <bit>

#include "core/dispatch.h"
#include "core/ops/check.h"

namespace mmfree {

void tree_sum(const Tensor& others, const Tensor& mine, int64_t place, Tensor& out) {
  const int64_t n = out.size();
  check_float("tree_sum", "out", out, 1);
  check_tensor("tree_sum", "mine", mine, {n}, out.dtype());
  if (n == 0) return;
  const int64_t count = others.size() / n + 1;
  MMFREE_CHECK(ShapeError, count <= kMostTreeTerms && std::has_single_bit(uint64_t(count)), "tree_sum: ", count,
               " terms, expected a power of two up to ", kMostTreeTerms);
  check_tensor("tree_sum", "others", others, {(count - 1) * n}, out.dtype());
  MMFREE_CHECK(ShapeError, place >= 0 && place < count, "tree_sum: term ", place, " of ", count);
  MMFREE_CHECK(DTypeError, out.dtype() != DType::bf16, "tree_sum: expected f32 or f64, got ", out.describe());
  check_device("tree_sum", others.device(), {&mine, &out});
  const TreeSumArgs args{others.raw(), mine.raw(), out.raw_mut(), count, place, n, out.dtype()};
  MMFREE_DISPATCH(others.device(), tree_sum, args);
}

}  // namespace mmfree
