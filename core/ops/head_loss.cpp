#include "core/ops/head_loss.h"

#include <algorithm>

#include "core/dispatch.h"
#include "core/ops/check.h"
#include "core/ops/elementwise.h"

namespace mmfree {

int64_t head_rows(int64_t vocab, Device device) {
  constexpr int64_t kLeast = 512, kBytes = int64_t(256) << 20;
  return device == Device::cpu ? kLeast : std::max(kLeast, kBytes / (2 * vocab) / kLeast * kLeast);
}

Tensor LossScale::on(Device device) const {
  if (tensor_.defined()) {
    check_tensor("loss", "scale", tensor_, {1}, DType::f64);
    check_device("loss", device, {&tensor_});
    return tensor_;
  }
  Tensor scale({1}, DType::f64, device);
  fill(scale, value_);
  return scale;
}

void head_loss(const QuantTensor& q, const WeightMatrix& w, const Tensor& targets, Tensor& nll, HeadLossGrads* grads) {
  const int64_t n = q.values.dim(0), v = w.rows();
  const DType t = q.compute;
  const int64_t block_rows = head_rows(v, q.values.device());
  check_tensor("head_loss", "targets", targets, {n}, DType::i32);
  check_tensor("head_loss", "nll", nll, {n}, param_dtype(t));
  check_device("head_loss", q.values.device(), {&targets, &nll});
  const bool gradient = grads && (grads->dq.defined() || grads->dw.defined());
  if (gradient) {
    check_tensor("head_loss", "scale", grads->scale, {1}, DType::f64);
    check_device("head_loss", q.values.device(), {&grads->scale});
  }
  const Tensor dense = grads && grads->dq.defined() ? linear_dx_weights(w, t) : Tensor();  // once for all blocks
  for (int64_t begin = 0; begin < n; begin += block_rows) {
    const int64_t end = std::min(n, begin + block_rows);
    const QuantTensor block = q.quantised() ? QuantTensor(q.values.slice(begin, end), q.scale.slice(begin, end), t)
                                            : QuantTensor(q.values.slice(begin, end));
    Tensor logits({end - begin, v}, t, targets.device()), block_nll = nll.slice(begin, end);
    linear(block, w, logits);
    const SoftmaxNllArgs args{logits.raw_mut(),
                              targets.slice(begin, end).data<int32_t>(),
                              block_nll.raw_mut(),
                              end - begin,
                              v,
                              gradient ? grads->scale.data<double>() : nullptr,
                              gradient,
                              t};
    MMFREE_DISPATCH(targets.device(), softmax_nll, args);
    if (!gradient) continue;
    if (grads->dq.defined()) {
      Tensor dq = grads->dq.slice(begin, end);
      linear_dx(logits, w, dq, 0, dense);
    }
    if (grads->dw.defined()) linear_dw(logits, block, grads->dw, begin ? 1 : grads->beta_w, w.backward);
  }
}

}  // namespace mmfree
