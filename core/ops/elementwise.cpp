#include "core/ops/elementwise.h"

#include "core/dispatch.h"
#include "core/ops/check.h"

namespace mmfree {

void add(const Tensor& a, const Tensor& b, Tensor& y) {
  check_tensor("add", "b", b, a.shape(), b.dtype());
  check_tensor("add", "y", y, a.shape(), a.dtype());
  check_device("add", a.device(), {&b, &y});
  MMFREE_CHECK(DTypeError, a.device() == Device::cuda || a.dtype() == b.dtype(),
               "add: one dtype is expected on the CPU, got ", name_of(a.dtype()), " + ", name_of(b.dtype()), " -> ",
               name_of(y.dtype()));
  const ElementwiseArgs args{a.raw(), b.raw(), y.raw_mut(), a.size(), a.dtype(), b.dtype(), y.dtype()};
  MMFREE_DISPATCH(a.device(), add, args);
}

void cast(const Tensor& from, Tensor& to) {
  check_tensor("cast", "to", to, from.shape(), to.dtype());
  check_device("cast", from.device(), {&to});
  const ElementwiseArgs args{from.raw(), nullptr, to.raw_mut(), from.size(), from.dtype(), from.dtype(), to.dtype()};
  MMFREE_DISPATCH(from.device(), cast, args);
}

void fill(Tensor& y, double value) {
  const FillArgs args{y.raw_mut(), y.size(), value, y.dtype()};
  MMFREE_DISPATCH(y.device(), fill, args);
}

void sum(const Tensor& x, double scale, Tensor& out, double beta) {
  check_tensor("sum", "out", out, {1}, DType::f64);
  check_device("sum", x.device(), {&out});
  const SumArgs args{x.raw(), out.mut<double>(), x.size(), scale, beta, nullptr, x.dtype()};
  MMFREE_DISPATCH(x.device(), sum, args);
}

void sum(const Tensor& x, const Tensor& scale, Tensor& out) {
  check_tensor("sum", "out", out, {1}, DType::f64);
  check_tensor("sum", "scale", scale, {1}, DType::f64);
  check_device("sum", x.device(), {&scale, &out});
  const SumArgs args{x.raw(), out.mut<double>(), x.size(), 1, 0, scale.data<double>(), x.dtype()};
  MMFREE_DISPATCH(x.device(), sum, args);
}

void sum_of_squares(const Tensor& x, Tensor& out) {
  check_tensor("sum_of_squares", "out", out, {1}, DType::f64);
  check_device("sum_of_squares", x.device(), {&out});
  const SumArgs args{x.raw(), out.mut<double>(), x.size(), 1, 0, nullptr, x.dtype()};
  MMFREE_DISPATCH(x.device(), sum_of_squares, args);
}

}  // namespace mmfree
