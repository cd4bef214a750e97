#include "core/ops/lower_bounds.h"

#include "core/dispatch.h"
#include "core/ops/check.h"

namespace mmfree {

void lower_bounds(const Tensor& lambda, Tensor& gamma) {
  check_float("lower_bounds", "lambda", lambda, 2);
  check_tensor("lower_bounds", "gamma", gamma, lambda.shape(), lambda.dtype());
  check_device("lower_bounds", lambda.device(), {&gamma});
  MMFREE_DISPATCH(
      lambda.device(), lower_bounds,
      LowerBoundsArgs{lambda.raw(), nullptr, gamma.raw_mut(), lambda.dim(0), lambda.dim(1), 0, lambda.dtype()});
}

void lower_bounds_backward(const Tensor& lambda, const Tensor& dgamma, Tensor& dlambda, double beta) {
  check_float("lower_bounds_backward", "lambda", lambda, 2);
  check_tensor("lower_bounds_backward", "dgamma", dgamma, lambda.shape(), lambda.dtype());
  check_tensor("lower_bounds_backward", "dlambda", dlambda, lambda.shape(), lambda.dtype());
  check_device("lower_bounds_backward", lambda.device(), {&dgamma, &dlambda});
  MMFREE_DISPATCH(lambda.device(), lower_bounds_backward,
                  LowerBoundsArgs{lambda.raw(), dgamma.raw(), dlambda.raw_mut(), lambda.dim(0), lambda.dim(1), beta,
                                  lambda.dtype()});
}

}  // namespace mmfree
