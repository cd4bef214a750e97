#include "autograd/ops.h"
#include "core/parallel.h"

namespace mmfree {
namespace {

/// A weight matrix as a list of saved tensors, and back.
std::vector<Tensor> pack(const WeightMatrix& w) { return {w.ternary.codes, w.ternary.scale, w.plain}; }

WeightMatrix unpack(const BackwardCtx& c, size_t first, int64_t cols) {
  WeightMatrix w;
  w.ternary.codes = c.saved(first);
  w.ternary.scale = c.saved(first + 1);
  w.ternary.cols = cols;
  w.plain = c.saved(first + 2);
  return w;
}

}  // namespace

Var linear(const Var& x, const Var& latent, const WeightMatrix& matrix) {
  Tensor y({x.dim(0), matrix.rows()}, x.quant().compute_dtype(), x.value().device());
  linear(x.quant(), matrix, y);
  std::vector<Tensor> saved = pack(matrix);
  saved.insert(saved.end(), {x.quant().values, x.quant().scale});
  return record("linear", {x, latent}, {y}, saved, [cols = matrix.cols()](const BackwardCtx& c) {
    const Tensor dy = c.out_grad();
    if (c.needs(0)) {
      auto [dx, beta] = c.grad(0);
      linear_dx(dy, unpack(c, 0, cols), dx, beta);
    }
    if (c.needs(1)) {
      auto [dw, beta] = c.grad(1);
      linear_dw(dy, c.saved(4).defined() ? QuantTensor(c.saved(3), c.saved(4)) : QuantTensor(c.saved(3)), dw, beta);
    }
  })[0];
}

Var head_loss(const Var& q, const Var& latent, const WeightMatrix& matrix, const Tensor& targets, double scale) {
  const DType t = q.quant().compute_dtype();
  Tensor nll({q.dim(0)}, t, q.value().device()), loss({1}, t);
  HeadLossGrads grads;
  if (Tape::current() && q.requires_grad()) grads.dq = Tensor(q.shape(), t, q.value().device());
  if (Tape::current() && latent.requires_grad()) {
    const GradTarget target = latent.slot()->target();
    grads.dw = target.tensor;
    grads.beta_w = target.beta;
  }
  head_loss(q.quant(), matrix, targets, scale, nll, &grads);
  dispatch_float(t, "head_loss", [&]<class T>() {
    const T* x = nll.data<T>();
    *loss.mut<T>() = T(scale * ordered_sum(nll.size(), 4096, [x](int64_t begin, int64_t end) {
                         double sum = 0;
                         for (int64_t i = begin; i < end; ++i) sum += double(x[i]);
                         return sum;
                       }));
  });
  return record("head_loss", {q, latent}, {loss}, {grads.dq}, [](const BackwardCtx& c) {
    Tensor seed = c.out_grad();
    dispatch_float(seed.dtype(), "head_loss", [&]<class T>() {
      MMFREE_CHECK(Error, *seed.data<T>() == T(1),
                   "head_loss: backward must start from this loss (put factors into `scale`)");
    });
    if (c.needs(0)) c.pass(0, c.saved(0));
  })[0];
}

}  // namespace mmfree
