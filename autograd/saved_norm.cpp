#include "autograd/saved_norm.h"

namespace mmfree {

NormForward::NormForward(const Source& in, const Var& outer) : in(in), outer(outer) {
  source.kind = in.kind;
  source.a = in.a.value(), source.b = in.b.value(), source.weight = in.weight.value(), source.eps = in.eps;
  stats = make_norm_stats(source, outer.value());
  if (in.kind == RowSource::sum) x = Tensor(in.a.shape(), in.a.value().dtype(), in.a.device());
}

NormBranch NormForward::branch(const Branch& b) const {
  const int64_t n = source.rows_count(), d = source.width();
  if (b.rounding != Rounding::int8)
    return {b.weight.value(), b.rounding, Tensor({n, d}, in.a.compute(), in.a.device()), Tensor()};
  return {b.weight.value(), b.rounding, Tensor({n, d}, DType::i8, in.a.device()),
          Tensor({n}, b.weight.value().dtype(), in.a.device())};
}

void NormForward::run(double eps_outer, double eps_inner, std::vector<NormBranch>& branches) {
  norm_quant(source, outer.value(), eps_outer, eps_inner, branches, stats, x);
}

QuantTensor NormForward::output(const NormBranch& b) const {
  return b.step.defined() ? QuantTensor(b.out, b.step, in.a.compute()) : QuantTensor(b.out);
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
  NormStats stats = make_norm_stats(source, outer);
  Tensor none;
  norm_quant(source, outer, eps_outer, eps_inner, branches, stats, none);
}

void SavedNorm::backward(const BackwardCtx& c, std::vector<NormBranchGrad>& grads, size_t sum) const {
  const bool gate = kind == RowSource::gate, has_sum = kind == RowSource::sum && c.has(sum);
  if (grads.empty()) {  // only the sum itself was used
    if (has_sum) c.pass(0, c.out_grad(sum)), c.pass(1, c.out_grad(sum));
    return;
  }
  const DType t = grads[0].dout.dtype();
  const RowSource source = this->source(c);
  RowSourceGrad grad;
  if (has_sum) grad.incoming = c.out_grad(sum);
  const bool wants_a = c.needs(0) || (kind == RowSource::sum && c.needs(1));
  if (wants_a) grad.a = Tensor(source.a.shape(), t, source.a.device());
  if (gate && c.needs(1)) grad.b = Tensor(source.b.shape(), t, source.a.device());
  if (gate && c.needs(2)) {
    const GradTarget target = c.grad(2);
    grad.weight = target.tensor;
    grad.beta_weight = target.beta;
  }
  auto [douter, beta_outer] = c.grad_if_needed(3);
  norm_quant_backward(source, c.saved(3), eps_inner, {c.saved(4), c.saved(5), c.saved(6)}, grads, grad, douter,
                      beta_outer);
  if (wants_a) c.pass(0, grad.a);
  if (kind == RowSource::sum && wants_a) c.pass(1, grad.a);
  if (grad.b.defined()) c.pass(1, grad.b);
}

}  // namespace mmfree
