#include "autograd/ops.h"
#include "autograd/plan.h"
#include "autograd/saved_norm.h"
#include "core/ops/check.h"
#include "core/ops/gate_norm.h"

namespace mmfree {

std::vector<Var> norm_quant(const Source& source, const Var& outer, double eps_outer, double eps_inner,
                            const std::vector<Branch>& branches) {
  if (Plan* plan = Plan::current()) {
    const NormForward f(source, outer);
    Plan::Norm step{source, outer, eps_outer, eps_inner, branches, {}, {}};
    for (size_t b = 0; b < branches.size(); ++b)
      step.outputs.push_back(plan->value(f.source.width(), source.a.compute()));
    std::vector<Var> outputs = step.outputs;
    if (source.kind == RowSource::sum) outputs.push_back(step.sum = plan->value(f.source.width(), source.a.compute()));
    plan->steps.emplace_back(std::move(step));
    return outputs;
  }
  NormForward f(source, outer);
  std::vector<NormBranch> outs;
  for (const Branch& b : branches) outs.push_back(f.branch(b));
  f.run(eps_outer, eps_inner, outs);
  std::vector<Var> inputs = f.inputs();
  std::vector<SavedTensor> saved = f.saved();
  std::vector<QuantTensor> outputs;
  for (size_t b = 0; b < branches.size(); ++b) {
    inputs.push_back(branches[b].weight);
    saved.emplace_back(branches[b].weight.value());
    outputs.push_back(f.output(outs[b]));
    f.show(nullptr, outs[b]);
  }
  if (f.x.defined()) outputs.emplace_back(f.x, source.a.compute());
  return record("norm_quant", inputs, std::move(outputs), std::move(saved),
                [norm = SavedNorm(source, eps_outer, eps_inner), n = branches.size()](const BackwardCtx& c) {
                  std::vector<NormBranchGrad> grads;
                  for (size_t b = 0; b < n; ++b) {
                    if (!c.has(b)) continue;
                    auto [dweight, beta] = c.grad_if_needed(kNormInputs + b);
                    grads.push_back({c.saved(kNormSlots + b), c.out_grad(b), dweight, beta});
                  }
                  norm.backward(c, grads, n);
                });
}

Var rmsnorm(const Var& x, const Var& weight, double eps) {
  return norm_quant(Source::rows(x), Var(), eps, eps, {{weight, Rounding::none}})[0];
}

Var gate_norm(const Var& a, const Var& b, const Var& weight, double eps) {
  const DType t = a.value().dtype();
  Tensor y(a.shape(), t, a.device()), r({a.dim(0)}, param_dtype(t), a.device());
  gate_norm(a.value(), b.value(), weight.value(), eps, y, r);
  return record("gate_norm", {a, b, weight}, {y}, {a, b, weight, r}, [](const BackwardCtx& c) {
    auto [da, beta_a] = c.grad_if_needed(0);
    auto [db, beta_b] = c.grad_if_needed(1);
    auto [dweight, beta_w] = c.grad_if_needed(2);
    gate_norm_backward(c.saved(0), c.saved(1), c.saved(2), c.saved(3), c.out_grad(), da, beta_a, db, beta_b, dweight,
                       beta_w);
  })[0];
}

}  // namespace mmfree
