#include "core/ops/gate_norm.h"

#include "core/dispatch.h"
#include "core/ops/check.h"

namespace mmfree {

void gate_norm(const Tensor& a, const Tensor& b, const Tensor& weight, double eps, Tensor& y, Tensor& r) {
  check_float("gate_norm", "a", a, 2);
  const int64_t n = a.dim(0), d = a.dim(1);
  check_tensor("gate_norm", "b", b, {n, d}, a.dtype());
  const DType p = param_dtype(a.dtype());
  check_optional("gate_norm", "weight", weight, {d}, p);
  check_tensor("gate_norm", "y", y, {n, d}, a.dtype());
  check_tensor("gate_norm", "r", r, {n}, p);
  check_device("gate_norm", a.device(), {&b, &weight, &y, &r});
  const GateNormArgs args{a.raw(), b.raw(), weight.raw(), y.raw_mut(), r.raw_mut(), n, d, eps, a.dtype()};
  MMFREE_DISPATCH(a.device(), gate_norm, args);
}

void gate_norm_backward(const Tensor& a, const Tensor& b, const Tensor& weight, const Tensor& r, const Tensor& dy,
                        Tensor& da, double beta_a, Tensor& db, double beta_b, Tensor& dweight, double beta_weight) {
  check_float("gate_norm_backward", "a", a, 2);
  const int64_t n = a.dim(0), d = a.dim(1);
  const DType t = a.dtype(), p = param_dtype(t);
  check_tensor("gate_norm_backward", "b", b, {n, d}, t);
  check_optional("gate_norm_backward", "weight", weight, {d}, p);
  check_tensor("gate_norm_backward", "r", r, {n}, p);
  check_tensor("gate_norm_backward", "dy", dy, {n, d}, t);
  check_optional("gate_norm_backward", "da", da, {n, d}, t);
  check_optional("gate_norm_backward", "db", db, {n, d}, t);
  check_optional("gate_norm_backward", "dweight", dweight, {d}, p);
  check_device("gate_norm_backward", a.device(), {&b, &weight, &r, &dy, &da, &db, &dweight});
  const GateNormBackwardArgs args{a.raw(),
                                  b.raw(),
                                  weight.raw(),
                                  r.raw(),
                                  dy.raw(),
                                  da.raw_mut(),
                                  db.raw_mut(),
                                  dweight.raw_mut(),
                                  beta_a,
                                  beta_b,
                                  beta_weight,
                                  n,
                                  d,
                                  t};
  MMFREE_DISPATCH(a.device(), gate_norm_backward, args);
}

}  // namespace mmfree
