#include "autograd/ops.h"
#include "autograd/plan.h"
#include "core/ops/lower_bounds.h"
#include "core/ops/mlgru_scan.h"

namespace mmfree {

std::vector<Var> lower_bounds(const Var& lambda) {
  const int64_t layers = lambda.dim(0), d = lambda.dim(1);
  Tensor gamma(lambda.shape(), lambda.value().dtype(), lambda.device());
  lower_bounds(lambda.value(), gamma);
  std::vector<QuantTensor> rows;
  for (int64_t l = 0; l < layers; ++l) rows.emplace_back(gamma.slice(l, l + 1).reshape({d}));
  return record("lower_bounds", {lambda}, std::move(rows), {lambda}, [](const BackwardCtx& c) {
    const Tensor lambda = c.saved(0);
    Tensor dgamma(lambda.shape(), lambda.dtype(), lambda.device());
    for (int64_t l = 0; l < lambda.dim(0); ++l)
      dgamma.slice(l, l + 1).reshape({lambda.dim(1)}).copy_from(c.out_grad(size_t(l)));
    auto [dlambda, beta] = c.grad(0);
    lower_bounds_backward(lambda, dgamma, dlambda, beta);
  });
}

Var mlgru_scan(const Var& z, const Var& a, const Var& gamma, int64_t batch, Tensor* state, const Tensor& starts) {
  if (Plan* plan = Plan::current()) {
    const Var h = plan->value(z.dim(1), z.compute());
    plan->steps.emplace_back(Plan::Scan{z, a, gamma, h});
    return h;
  }
  const Shape full{batch, z.dim(0) / batch, z.dim(1)};
  Tensor h(full, z.value().dtype(), z.device()), h0, last, cuts;
  if (starts.defined()) cuts = starts.reshape({batch, full[1]});
  if (state) {
    h0 = *state;
    last = Tensor({batch, z.dim(1)}, z.value().dtype() == DType::f64 ? DType::f64 : DType::f32, z.device());
  }
  mlgru_scan(z.value().reshape(full), a.value().reshape(full), gamma.value(), h0, cuts, h, last);
  if (state) *state = last;
  return record("mlgru_scan", {z, a, gamma}, {h.reshape(z.shape())}, {z, a, gamma, h0, cuts, h},
                [](const BackwardCtx& c) {
                  const Tensor h = c.saved(5), z = c.saved(0).reshape(h.shape()), a = c.saved(1).reshape(h.shape());
                  Tensor dz(z.shape(), z.dtype(), z.device()), da(z.shape(), z.dtype(), z.device());
                  auto [dgamma, beta] = c.grad_if_needed(2);
                  mlgru_scan_backward(z, a, c.saved(2), c.saved(3), c.saved(4), h, c.out_grad().reshape(z.shape()), dz,
                                      da, dgamma, beta);
                  c.pass(0, dz);
                  c.pass(1, da);
                })[0];
}

}  // namespace mmfree
