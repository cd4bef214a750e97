#include "autograd/ops.h"
#include "core/ops/gate_norm.h"

namespace mmfree {

std::vector<Var> norm_quant(const Var& x, const Var& outer, double eps_outer, double eps_inner,
                            const std::vector<Branch>& branches) {
  const int64_t n = x.dim(0);
  const DType t = x.value().dtype();
  const Device device = x.value().device();
  Tensor r1({n}, t, device), r2({n}, t, device);
  std::vector<NormBranch> kernel;
  std::vector<Var> inputs = {x, outer};
  std::vector<Tensor> saved = {x.value(), outer.value(), r1, r2};
  for (const Branch& b : branches) {
    const bool quantised = b.rounding == Rounding::int8;
    kernel.push_back({b.weight.value(), b.rounding, Tensor(x.shape(), quantised ? DType::i8 : t, device),
                      quantised ? Tensor({n}, t, device) : Tensor()});
    inputs.push_back(b.weight);
    saved.push_back(b.weight.value());
  }
  norm_quant(x.value(), outer.value(), eps_outer, eps_inner, kernel, r1, r2);
  saved[2] = r1, saved[3] = r2;
  std::vector<QuantTensor> outputs;
  for (NormBranch& b : kernel) outputs.push_back(b.step.defined() ? QuantTensor(b.out, b.step) : QuantTensor(b.out));
  return record("norm_quant", inputs, std::move(outputs), saved, [count = branches.size()](const BackwardCtx& c) {
    std::vector<NormBranchGrad> grads;
    for (size_t b = 0; b < count; ++b) {
      if (!c.has(b)) continue;
      auto [dweight, beta] = c.grad_if_needed(2 + b);
      grads.push_back({c.saved(4 + b), c.out_grad(b), dweight, beta});
    }
    auto [dx, beta_x] = c.grad_if_needed(0);
    auto [douter, beta_outer] = c.grad_if_needed(1);
    norm_quant_backward(c.saved(0), c.saved(1), c.saved(2), c.saved(3), grads, dx, beta_x, douter, beta_outer);
  });
}

Var rmsnorm(const Var& x, const Var& weight, double eps) {
  return norm_quant(x, Var(), eps, eps, {{weight, Rounding::none}})[0];
}

Var gate_norm(const Var& a, const Var& b, const Var& weight, double eps) {
  Tensor y(a.shape(), a.value().dtype(), a.value().device()), r({a.dim(0)}, y.dtype(), y.device());
  gate_norm(a.value(), b.value(), weight.value(), eps, y, r);
  return record("gate_norm", {a, b, weight}, {y}, {a.value(), b.value(), weight.value(), r}, [](const BackwardCtx& c) {
    auto [da, beta_a] = c.grad_if_needed(0);
    auto [db, beta_b] = c.grad_if_needed(1);
    auto [dweight, beta_w] = c.grad_if_needed(2);
    gate_norm_backward(c.saved(0), c.saved(1), c.saved(2), c.saved(3), c.out_grad(), da, beta_a, db, beta_b, dweight,
                       beta_w);
  })[0];
}

}  // namespace mmfree
