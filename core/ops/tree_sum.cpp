#include "core/ops/tree_sum.h"

#include <bit>

#include "core/dispatch.h"
#include "core/ops/check.h"

namespace mmfree {

void tree_sum(const Tensor& terms, int64_t count, Tensor& out) {
  MMFREE_CHECK(ShapeError, count > 0 && count <= kMostTreeTerms && std::has_single_bit(uint64_t(count)),
               "tree_sum: ", count, " terms, expected a power of two up to ", kMostTreeTerms);
  check_float("tree_sum", "out", out, 1);
  check_tensor("tree_sum", "terms", terms, {count * out.size()}, out.dtype());
  MMFREE_CHECK(DTypeError, out.dtype() != DType::bf16, "tree_sum: expected f32 or f64, got ", out.describe());
  check_device("tree_sum", terms.device(), {&out});
  const TreeSumArgs args{terms.raw(), out.raw_mut(), count, out.size(), out.dtype()};
  MMFREE_DISPATCH(terms.device(), tree_sum, args);
}

}  // namespace mmfree
