#include "core/ops/norm_quant.h"

#include <algorithm>

#include "core/dispatch.h"
#include "core/ops/check.h"

namespace mmfree {
namespace {

RowSourceArgs check_source(const char* op, const RowSource& s, DType activations) {
  check_float(op, "a", s.a, 2);
  const int64_t n = s.rows_count(), d = s.width();
  const DType t = s.a.dtype(), p = param_dtype(activations);
  bool may_be_params = false, has_b = false, has_weight = false;
  switch (s.kind) {
    case RowSource::rows:
    case RowSource::sum:
      may_be_params = true, has_b = s.kind == RowSource::sum;
      break;
    case RowSource::gate:
      has_b = true, has_weight = s.weight.defined();
      break;
    case RowSource::glu:
      MMFREE_CHECK(ShapeError, !s.halved() || s.a.dim(1) % 2 == 0, op, ": glu needs two halves, got ", s.a.describe());
      has_b = !s.halved();
      [[fallthrough]];
    case RowSource::activation:
      with_activation(s.f, []<Activation>() {});  // throws if f is unknown
      break;
    default:
      throw Error(concat(op, ": unknown source kind ", int(s.kind)));
  }
  MMFREE_CHECK(DTypeError, t == activations || (may_be_params && t == p), op, ": a must be ", name_of(activations),
               may_be_params ? concat(" or ", name_of(p)) : std::string(), ", got ", s.a.describe());
  if (has_b) check_tensor(op, "b", s.b, {n, d}, activations);
  if (has_weight) check_tensor(op, "gate weight", s.weight, {d}, p);
  check_device(op, s.a.device(), {&s.b, &s.weight});
  const void* b = has_b ? s.b.raw() : s.halved() ? s.a.raw() + d * size_of(t) : nullptr;
  return {s.kind, s.f, s.a.raw(), b, has_weight ? s.weight.raw() : nullptr, s.a.dim(1), s.eps, t};
}

/// A of a forward call: the dtype of b, else of a branch that holds rounded values, else of a.
DType activations_of(const RowSource& s, const std::vector<NormBranch>& branches) {
  if (s.b.defined()) return s.b.dtype();
  for (const NormBranch& b : branches)
    if (b.rounding != Rounding::none && b.out.dtype() != DType::i8) return b.out.dtype();
  return s.a.dtype();
}

template <class Branch>
bool any_weight(const std::vector<Branch>& branches) {
  return std::any_of(branches.begin(), branches.end(), [](const Branch& b) { return b.weight.defined(); });
}

bool has_r0(const RowSource& s) { return s.kind == RowSource::gate && s.weight.defined(); }

/// Checks and fills in the arguments of both directions, except the branches.
template <class Branch>
NormArgs check_norm(const char* op, const RowSource& source, const Tensor& outer, const NormStats& stats,
                    const std::vector<Branch>& branches, DType t) {
  MMFREE_CHECK(ShapeError, !branches.empty() && branches.size() <= kMaxNormBranches, op, ": takes 1 to ",
               kMaxNormBranches, " branches, got ", branches.size());
  NormArgs args{};
  args.source = check_source(op, source, t);
  args.n = source.rows_count(), args.d = source.width(), args.dtype = t, args.outer = outer.raw();
  const DType p = param_dtype(t);
  check_optional(op, "outer", outer, {args.d}, p);
  if (has_r0(source)) check_tensor(op, "r0", stats.r0, {args.n}, p);
  if (outer.defined()) check_tensor(op, "r1", stats.r1, {args.n}, p);
  if (any_weight(branches)) check_tensor(op, "r2", stats.r2, {args.n}, p);
  check_device(op, source.a.device(), {&outer, &stats.r0, &stats.r1, &stats.r2});
  return args;
}

/// dtype of a branch's rounded values.
DType value_dtype(const char* op, Rounding rounding, DType t) {
  switch (rounding) {
    case Rounding::int8:
    case Rounding::bf16:
      return t;
    case Rounding::none:
      return param_dtype(t);
  }
  throw Error(concat(op, ": unknown rounding ", int(rounding)));
}

NormBranchArgs check_branch(const char* op, NormBranch& b, const NormArgs& args, Device device) {
  const bool codes = b.rounding == Rounding::int8 && b.step.defined();
  const DType p = param_dtype(args.dtype);
  check_optional(op, "weight", b.weight, {args.d}, p);
  check_tensor(op, "out", b.out, {args.n, args.d}, codes ? DType::i8 : value_dtype(op, b.rounding, args.dtype));
  if (codes) check_tensor(op, "step", b.step, {args.n}, p);
  check_device(op, device, {&b.weight, &b.out, &b.step});
  return {b.weight.raw(), b.rounding, b.out.raw_mut(), codes ? b.step.raw_mut() : nullptr, nullptr, nullptr, 0};
}

NormBranchArgs check_branch(const char* op, NormBranchGrad& b, const NormArgs& args, Device device) {
  const DType t = args.dtype, p = param_dtype(t);
  check_optional(op, "weight", b.weight, {args.d}, p);
  check_tensor(op, "dout", b.dout, {args.n, args.d}, t);
  check_optional(op, "dweight", b.dweight, {args.d}, p);
  const bool codes = b.step.defined();
  MMFREE_CHECK(Error, !codes || b.rounding == Rounding::int8, op, ": steps of a branch that is not rounded to int8");
  check_optional(op, "u", b.u, {args.n, args.d}, codes ? DType::i8 : value_dtype(op, b.rounding, t));
  check_optional(op, "step", b.step, {args.n}, p);
  check_device(op, device, {&b.weight, &b.dout, &b.dweight, &b.u, &b.step});
  MMFREE_CHECK(Error, b.weight.defined() || !b.dweight.defined(), op, ": dweight of a branch without a weight");
  return {b.weight.raw(), b.rounding,          b.u.raw_mut(), b.step.raw_mut(),
          b.dout.raw(),   b.dweight.raw_mut(), b.beta_weight};
}

}  // namespace

NormStats make_norm_stats(const RowSource& source, const Tensor& outer, const std::vector<NormBranch>& branches) {
  const auto made = [&](bool wanted) {
    return wanted ? Tensor({source.rows_count()}, param_dtype(source.a.dtype()), source.a.device()) : Tensor();
  };
  NormStats stats;
  stats.r0 = made(has_r0(source)), stats.r1 = made(outer.defined()), stats.r2 = made(any_weight(branches));
  return stats;
}

void norm_quant(const RowSource& source, const Tensor& outer, double eps_outer, double eps_inner,
                std::vector<NormBranch>& branches, NormStats& stats, Tensor& x) {
  constexpr const char* op = "norm_quant";
  NormQuantArgs args{check_norm(op, source, outer, stats, branches, activations_of(source, branches)), 0, 0, 0, 0};
  MMFREE_CHECK(ShapeError, !x.defined() || source.kind == RowSource::sum, op, ": only a sum has x as an output");
  check_optional(op, "x", x, {args.n, args.d}, source.a.dtype());
  check_device(op, source.a.device(), {&x});
  args.eps_outer = eps_outer, args.eps_inner = eps_inner, args.x = x.raw_mut();
  if (has_r0(source)) args.r0 = stats.r0.raw_mut();
  if (outer.defined()) args.r1 = stats.r1.raw_mut();
  if (any_weight(branches)) args.r2 = stats.r2.raw_mut();
  for (NormBranch& b : branches) args.branches[args.count++] = check_branch(op, b, args, source.a.device());
  MMFREE_DISPATCH(source.a.device(), norm_quant, args);
}

void norm_quant_backward(const RowSource& source, const Tensor& outer, double eps_inner, const NormStats& stats,
                         std::vector<NormBranchGrad>& branches, RowSourceGrad& grad, Tensor& douter,
                         double beta_outer) {
  constexpr const char* op = "norm_quant_backward";
  const DType t = branches.empty() ? DType::f32 : branches[0].dout.dtype();
  NormQuantBackwardArgs args{};
  static_cast<NormArgs&>(args) = check_norm(op, source, outer, stats, branches, t);
  const bool gate = source.kind == RowSource::gate, two = gate || (source.kind == RowSource::glu && !source.halved());
  const bool plain = source.kind == RowSource::rows || source.kind == RowSource::sum;
  MMFREE_CHECK(ShapeError, plain || !grad.incoming.defined(), op, ": only rows and sums take an incoming gradient");
  MMFREE_CHECK(ShapeError, outer.defined() || !douter.defined(), op, ": douter without an outer norm");
  check_optional(op, "incoming", grad.incoming, {args.n, args.d}, t);
  check_optional(op, "gradient of a", grad.a, source.a.shape(), t);
  if (two) check_optional(op, "gradient of b", grad.b, {args.n, args.d}, t);
  if (gate) check_optional(op, "gradient of the gate weight", grad.weight, {args.d}, param_dtype(t));
  check_optional(op, "douter", douter, {args.d}, param_dtype(t));
  check_device(op, source.a.device(), {&grad.incoming, &grad.a, &grad.b, &grad.weight, &douter});
  args.eps_inner = eps_inner, args.incoming = grad.incoming.raw();
  if (has_r0(source)) args.r0 = stats.r0.raw();
  if (outer.defined()) args.r1 = stats.r1.raw(), args.douter = douter.raw_mut();
  if (any_weight(branches)) args.r2 = stats.r2.raw();
  args.da = grad.a.raw_mut();
  if (two) args.db = grad.b.raw_mut();
  if (source.halved() && args.da) args.db = grad.a.raw_mut() + args.d * size_of(t);
  if (grad.rows.quantised()) {
    MMFREE_CHECK(DeviceError, source.a.device() == Device::cuda, op, ": gradients by rows are for a GPU");
    MMFREE_CHECK(ShapeError, source.kind != RowSource::glu || source.halved(), op, ": rows of a glu of two parts");
    check_tensor(op, "rows", grad.rows.values, source.a.shape(), DType::i8);
    check_tensor(op, "steps of the rows", grad.rows.scale, {args.n}, param_dtype(t));
    check_device(op, source.a.device(), {&grad.rows.values, &grad.rows.scale});
    args.rows = grad.rows.values.mut<int8_t>(), args.row_steps = grad.rows.scale.raw_mut();
  }
  if (has_r0(source)) args.dweight = grad.weight.raw_mut();
  args.beta_weight = grad.beta_weight, args.beta_outer = beta_outer;
  for (NormBranchGrad& b : branches) args.branches[args.count++] = check_branch(op, b, args, source.a.device());
  MMFREE_DISPATCH(source.a.device(), norm_quant_backward, args);
}

}  // namespace mmfree
