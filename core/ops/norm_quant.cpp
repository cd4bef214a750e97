#include "core/ops/norm_quant.h"

#include "core/dispatch.h"
#include "core/ops/check.h"

namespace mmfree {

void norm_quant(const Tensor& x, const Tensor& outer, double eps_outer, double eps_inner,
                std::vector<NormBranch>& branches, Tensor& r1, Tensor& r2) {
  check_float("norm_quant", "x", x, 2);
  const int64_t n = x.dim(0), d = x.dim(1);
  const DType t = x.dtype();
  check_optional("norm_quant", "outer", outer, {d}, t);
  check_tensor("norm_quant", "r1", r1, {n}, t);
  check_tensor("norm_quant", "r2", r2, {n}, t);
  NormQuantArgs args{x.raw(), outer.raw(), r1.raw_mut(), r2.raw_mut(), n, d, eps_outer, eps_inner, {}, t};
  for (NormBranch& b : branches) {
    const bool quantised = b.rounding == Rounding::int8;
    check_tensor("norm_quant", "weight", b.weight, {d}, t);
    check_tensor("norm_quant", "out", b.out, {n, d}, quantised ? DType::i8 : t);
    if (quantised) check_tensor("norm_quant", "step", b.step, {n}, t);
    args.branches.push_back({b.weight.raw(), b.rounding, b.out.raw_mut(), b.step.raw_mut()});
  }
  MMFREE_DISPATCH(x.device(), norm_quant, args);
}

void norm_quant_backward(const Tensor& x, const Tensor& outer, const Tensor& r1, const Tensor& r2,
                         std::vector<NormBranchGrad>& branches, Tensor& dx, double beta_x, Tensor& douter,
                         double beta_outer) {
  check_float("norm_quant_backward", "x", x, 2);
  const int64_t n = x.dim(0), d = x.dim(1);
  const DType t = x.dtype();
  check_optional("norm_quant_backward", "outer", outer, {d}, t);
  check_tensor("norm_quant_backward", "r1", r1, {n}, t);
  check_tensor("norm_quant_backward", "r2", r2, {n}, t);
  check_optional("norm_quant_backward", "dx", dx, {n, d}, t);
  check_optional("norm_quant_backward", "douter", douter, {d}, t);
  NormQuantBackwardArgs args{x.raw(), outer.raw(), r1.raw(), r2.raw(), dx.raw_mut(), douter.raw_mut(),
                             beta_x,  beta_outer,  n,        d,        {},           t};
  for (NormBranchGrad& b : branches) {
    check_tensor("norm_quant_backward", "weight", b.weight, {d}, t);
    check_tensor("norm_quant_backward", "dout", b.dout, {n, d}, t);
    check_optional("norm_quant_backward", "dweight", b.dweight, {d}, t);
    args.branches.push_back({b.weight.raw(), b.dout.raw(), b.dweight.raw_mut(), b.beta_weight});
  }
  MMFREE_DISPATCH(x.device(), norm_quant_backward, args);
}

}  // namespace mmfree
