#include "autograd/ops.h"
#include "core/ops/check.h"
#include "core/ops/elementwise.h"

namespace mmfree {

Var head_loss(const Var& q, const Var& latent, const WeightMatrix& matrix, const Tensor& targets,
              const LossScale& scale) {
  Tensor nll({q.dim(0)}, param_dtype(q.compute()), q.device()), loss({1}, DType::f64, q.device());
  HeadLossGrads grads;
  grads.scale = scale.on(q.device());
  if (Tape::current() && q.requires_grad()) grads.dq = Tensor(q.shape(), q.compute(), q.device());
  if (Tape::current() && latent.requires_grad()) {
    const GradTarget target = latent.slot()->target();
    grads.dw = target.tensor;
    grads.beta_w = target.beta;
  }
  head_loss(q.quant(), matrix, targets, nll, &grads);
  sum(nll, grads.scale, loss);
  const Var y = record("head_loss", {q, latent}, {loss}, {grads.dq}, [](const BackwardCtx& c) {
    const Tensor seed = c.out_grad();
    MMFREE_CHECK(Error, seed.device() != Device::cpu || DryRun::active(Device::cpu) || *seed.data<double>() == 1,
                 "head_loss: backward must start from this loss (put factors into `scale`)");
    if (c.needs(0)) c.pass(0, c.saved(0));
  })[0];
  if (y.requires_grad()) y.slot()->fixed_weight = true;
  return y;
}

}  // namespace mmfree
