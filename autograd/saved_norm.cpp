#include "autograd/saved_norm.h"

#include "core/ops/ternary_int8.h"

namespace mmfree {

NormForward::NormForward(const Source& in, const Var& outer)
    : in(in), outer(outer), source{in.kind, in.a.value(), in.b.value(), in.weight.value(), in.eps, in.f} {
  if (in.kind == RowSource::sum) x = Tensor(in.a.shape(), in.a.value().dtype(), in.a.device());
}

void NormForward::run(double eps_outer, double eps_inner, std::vector<NormBranch>& branches) {
  stats = make_norm_stats(source, outer.value(), branches);
  norm_quant(source, outer.value(), eps_outer, eps_inner, branches, stats, x);
}

QuantTensor NormForward::output(const NormBranch& b) const {
  return b.step.defined() ? QuantTensor(b.out, b.step, in.a.compute()) : QuantTensor(b.out, in.a.compute());
}

std::vector<SavedTensor> NormForward::saved(bool parts_of_sum) const {
  const bool value = in.kind == RowSource::sum && !parts_of_sum;
  return {value ? SavedTensor(x) : SavedTensor(in.a),
          value ? SavedTensor(Tensor()) : SavedTensor(in.b),
          in.weight.value(),
          outer.value(),
          stats.r0,
          stats.r1,
          stats.r2};
}

void SavedNorm::again(const RowSource& source, const Tensor& outer, std::vector<NormBranch>& branches) const {
  NormStats stats = make_norm_stats(source, outer, branches);
  Tensor none;
  norm_quant(source, outer, eps_outer, eps_inner, branches, stats, none);
}

void SavedNorm::backward(const BackwardCtx& c, std::vector<NormBranchGrad>& grads, size_t sum) const {
  const bool gate = kind == RowSource::gate, two = gate || kind == RowSource::glu,
             has_sum = kind == RowSource::sum && c.has(sum);
  if (grads.empty()) {  // only the sum itself was used
    if (has_sum) c.pass(kA, c.out_grad(sum)), c.pass(kB, c.out_grad(sum));
    return;
  }
  const DType t = grads[0].dout.dtype();
  const RowSource source = this->source(c);
  RowSourceGrad grad;
  // The kernel adds what x has from its other uses before it rounds: a sum and its value make the same bits.
  if (has_sum)
    grad.incoming = c.out_grad(sum);
  else if (kind == RowSource::rows)
    grad.incoming = c.take(kA);
  const bool wants_a = c.needs(kA) || (kind == RowSource::sum && c.needs(kB));
  const GradientForm form = two && c.needs(kB) ? GradientForm::values : c.wanted(kind == RowSource::sum ? kB : kA);
  if (form != GradientForm::values)
    grad.rows = make_gradient_rows(source.a.dim(0), source.a.dim(1), t, source.a.device());
  if (wants_a && (form != GradientForm::rows || kind == RowSource::sum))
    grad.a = Tensor(source.a.shape(), t, source.a.device());
  if (two && c.needs(kB)) grad.b = Tensor(source.b.shape(), t, source.a.device());
  if (gate && c.needs(kGateWeight)) {
    const GradTarget target = c.grad(kGateWeight);
    grad.weight = target.tensor;
    grad.beta_weight = target.beta;
  }
  auto [douter, beta_outer] = c.grad_if_needed(kOuter);
  norm_quant_backward(source, c.saved(kOuter), eps_inner, {c.saved(kR0), c.saved(kR1), c.saved(kR2)}, grads, grad,
                      douter, beta_outer);
  if (kind == RowSource::sum && wants_a)
    c.pass(kA, grad.a), c.pass(kB, {grad.a, grad.rows});
  else if (wants_a)
    c.pass(kA, {grad.a, grad.rows});
  if (grad.b.defined()) c.pass(kB, grad.b);
}

}  // namespace mmfree
