#include "core/ops/elementwise.h"

#include "core/dispatch.h"
#include "core/ops/check.h"

namespace mmfree {

void add(const Tensor& a, const Tensor& b, Tensor& y) {
  check_tensor("add", "b", b, a.shape(), a.dtype());
  check_tensor("add", "y", y, a.shape(), a.dtype());
  MMFREE_DISPATCH(a.device(), add, ElementwiseArgs{a.raw(), b.raw(), y.raw_mut(), a.size(), a.dtype(), a.dtype()});
}

void cast(const Tensor& from, Tensor& to) {
  check_tensor("cast", "to", to, from.shape(), to.dtype());
  MMFREE_DISPATCH(from.device(), cast,
                  ElementwiseArgs{from.raw(), nullptr, to.raw_mut(), from.size(), from.dtype(), to.dtype()});
}

double sum_of_squares(const Tensor& x) {
  return MMFREE_DISPATCH(x.device(), sum_of_squares,
                         ElementwiseArgs{x.raw(), nullptr, nullptr, x.size(), x.dtype(), x.dtype()});
}

}  // namespace mmfree
