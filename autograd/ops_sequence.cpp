#include <cstring>

#include "autograd/ops.h"
#include "core/ops/lower_bounds.h"
#include "core/ops/mlgru_scan.h"

namespace mmfree {

std::vector<Var> lower_bounds(const Var& lambda) {
  const int64_t layers = lambda.dim(0), d = lambda.dim(1);
  Tensor gamma(lambda.shape(), lambda.value().dtype(), lambda.value().device());
  lower_bounds(lambda.value(), gamma);
  std::vector<QuantTensor> rows;
  for (int64_t l = 0; l < layers; ++l) rows.emplace_back(gamma.slice(l, l + 1).reshape({d}));
  return record("lower_bounds", {lambda}, std::move(rows), {lambda.value()}, [](const BackwardCtx& c) {
    const Tensor& lambda = c.saved(0);
    Tensor dgamma(lambda.shape(), lambda.dtype(), lambda.device());
    for (int64_t l = 0; l < lambda.dim(0); ++l) {
      const Tensor row = c.out_grad(size_t(l));
      std::memcpy(dgamma.slice(l, l + 1).raw_mut(), row.raw(), size_t(row.bytes()));
    }
    auto [dlambda, beta] = c.grad(0);
    lower_bounds_backward(lambda, dgamma, dlambda, beta);
  });
}

Var mlgru_scan(const Var& z, const Var& a, const Var& gamma, const Tensor& h0, int64_t batch) {
  const Shape full{batch, z.dim(0) / batch, z.dim(1)};
  Tensor h(full, z.value().dtype(), z.value().device());
  mlgru_scan(z.value().reshape(full), a.value().reshape(full), gamma.value(), h0, h);
  return record("mlgru_scan", {z, a, gamma}, {h.reshape(z.shape())},
                {z.value().reshape(full), a.value().reshape(full), gamma.value(), h0, h}, [](const BackwardCtx& c) {
                  const Tensor& z = c.saved(0);
                  const Tensor dh = c.out_grad().reshape(z.shape());
                  Tensor dz(z.shape(), z.dtype(), z.device()), da(z.shape(), z.dtype(), z.device());
                  auto [dgamma, beta] = c.grad_if_needed(2);
                  mlgru_scan_backward(z, c.saved(1), c.saved(2), c.saved(3), c.saved(4), dh, dz, da, dgamma, beta);
                  c.pass(0, dz);
                  c.pass(1, da);
                })[0];
}

}  // namespace mmfree
