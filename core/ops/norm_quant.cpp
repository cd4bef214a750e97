#include "core/ops/norm_quant.h"

#include "core/dispatch.h"
#include "core/ops/check.h"

namespace mmfree {
namespace {

/// Checks the source and gives the call's A: the dtype of b, or of a where it has no b.
RowSourceArgs check_source(const char* op, const RowSource& s, DType activations) {
  check_float(op, "a", s.a, 2);
  const int64_t n = s.rows_count(), d = s.width();
  const DType t = s.a.dtype(), p = param_dtype(activations);
  MMFREE_CHECK(ShapeError, s.kind != RowSource::swiglu || s.a.dim(1) % 2 == 0, op, ": swiglu needs two halves, got ",
               s.a.describe());
  const bool may_be_params = s.kind == RowSource::rows || s.kind == RowSource::sum;
  MMFREE_CHECK(DTypeError, t == activations || (may_be_params && t == p), op, ": a must be ", name_of(activations),
               may_be_params ? concat(" or ", name_of(p)) : std::string(), ", got ", s.a.describe());
  if (s.kind == RowSource::gate || s.kind == RowSource::sum) check_tensor(op, "b", s.b, {n, d}, activations);
  if (s.kind == RowSource::gate) check_optional(op, "gate weight", s.weight, {d}, p);
  check_device(op, s.a.device(), {&s.b, &s.weight});
  return {s.kind, s.a.raw(), s.b.raw(), s.weight.raw(), s.eps, t};
}

/// A of a forward call: that of the plain outputs or of b, else of a.
DType activations_of(const RowSource& s, const std::vector<NormBranch>& branches) {
  if (s.b.defined()) return s.b.dtype();
  for (const NormBranch& b : branches)
    if (b.out.dtype() != DType::i8) return b.out.dtype();
  return s.a.dtype();
}

}  // namespace

NormStats make_norm_stats(const RowSource& source, const Tensor& outer) {
  const int64_t n = source.rows_count();
  const DType p = param_dtype(source.a.dtype());
  const Device device = source.a.device();
  NormStats stats;
  if (source.kind == RowSource::gate && source.weight.defined()) stats.r0 = Tensor({n}, p, device);
  if (outer.defined()) stats.r1 = Tensor({n}, p, device);
  stats.r2 = Tensor({n}, p, device);
  return stats;
}

void norm_quant(const RowSource& source, const Tensor& outer, double eps_outer, double eps_inner,
                std::vector<NormBranch>& branches, NormStats& stats, Tensor& x) {
  constexpr const char* op = "norm_quant";
  const DType t = activations_of(source, branches), p = param_dtype(t);
  NormQuantArgs args{};
  args.source = check_source(op, source, t);
  const int64_t n = args.n = source.rows_count(), d = args.d = source.width();
  check_optional(op, "outer", outer, {d}, p);
  if (source.kind == RowSource::gate && source.weight.defined()) check_tensor(op, "r0", stats.r0, {n}, p);
  if (outer.defined()) check_tensor(op, "r1", stats.r1, {n}, p);
  check_tensor(op, "r2", stats.r2, {n}, p);
  MMFREE_CHECK(ShapeError, !x.defined() || source.kind == RowSource::sum, op, ": only a sum has x as an output");
  check_optional(op, "x", x, {n, d}, source.a.dtype());
  check_device(op, source.a.device(), {&outer, &stats.r0, &stats.r1, &stats.r2, &x});
  args.x = x.raw_mut(), args.outer = outer.raw();
  args.r0 = stats.r0.raw_mut(), args.r1 = stats.r1.raw_mut(), args.r2 = stats.r2.raw_mut();
  args.eps_outer = eps_outer, args.eps_inner = eps_inner, args.dtype = t;
  for (NormBranch& b : branches) {
    const bool codes = b.rounding == Rounding::int8 && b.step.defined();
    check_tensor(op, "weight", b.weight, {d}, p);
    check_tensor(op, "out", b.out, {n, d}, codes ? DType::i8 : t);
    if (codes) check_tensor(op, "step", b.step, {n}, p);
    check_device(op, source.a.device(), {&b.weight, &b.out, &b.step});
    args.branches.push_back({b.weight.raw(), b.rounding, b.out.raw_mut(), codes ? b.step.raw_mut() : nullptr});
  }
  MMFREE_DISPATCH(source.a.device(), norm_quant, args);
}

void norm_quant_backward(const RowSource& source, const Tensor& outer, double eps_inner, const NormStats& stats,
                         std::vector<NormBranchGrad>& branches, RowSourceGrad& grad, Tensor& douter,
                         double beta_outer) {
  constexpr const char* op = "norm_quant_backward";
  MMFREE_CHECK(Error, !branches.empty(), op, ": no branch has a gradient");
  const DType t = branches[0].dout.dtype(), p = param_dtype(t);
  NormQuantBackwardArgs args{};
  args.source = check_source(op, source, t);
  const int64_t n = args.n = source.rows_count(), d = args.d = source.width();
  const bool gate = source.kind == RowSource::gate, plain = source.kind <= RowSource::sum;
  check_optional(op, "outer", outer, {d}, p);
  if (gate && source.weight.defined()) check_tensor(op, "r0", stats.r0, {n}, p);
  if (outer.defined()) check_tensor(op, "r1", stats.r1, {n}, p);
  check_tensor(op, "r2", stats.r2, {n}, p);
  MMFREE_CHECK(ShapeError, plain || !grad.incoming.defined(), op, ": only rows and sums take an incoming gradient");
  check_optional(op, "incoming", grad.incoming, {n, d}, t);
  check_optional(op, "gradient of a", grad.a, source.a.shape(), t);
  if (gate) check_optional(op, "gradient of b", grad.b, {n, d}, t);
  if (gate) check_optional(op, "gradient of the gate weight", grad.weight, {d}, p);
  check_optional(op, "douter", douter, {d}, p);
  check_device(op, source.a.device(),
               {&outer, &stats.r0, &stats.r1, &stats.r2, &grad.incoming, &grad.a, &grad.b, &grad.weight, &douter});
  args.outer = outer.raw(), args.eps_inner = eps_inner;
  args.r0 = stats.r0.raw(), args.r1 = stats.r1.raw(), args.r2 = stats.r2.raw(), args.incoming = grad.incoming.raw();
  args.da = grad.a.raw_mut(), args.db = grad.b.raw_mut(), args.dweight = grad.weight.raw_mut();
  args.douter = douter.raw_mut(), args.beta_weight = grad.beta_weight, args.beta_outer = beta_outer, args.dtype = t;
  for (NormBranchGrad& b : branches) {
    check_tensor(op, "weight", b.weight, {d}, p);
    check_tensor(op, "dout", b.dout, {n, d}, t);
    check_optional(op, "dweight", b.dweight, {d}, p);
    check_optional(op, "u", b.u, {n, d}, t);
    check_device(op, source.a.device(), {&b.weight, &b.dout, &b.dweight, &b.u});
    args.branches.push_back(
        {b.weight.raw(), b.dout.raw(), b.dweight.raw_mut(), b.beta_weight, b.rounding, b.u.raw_mut()});
  }
  MMFREE_DISPATCH(source.a.device(), norm_quant_backward, args);
}

}  // namespace mmfree
