#include "core/ops/adamw.h"

#include <cstring>
#include <functional>

#include "core/dispatch.h"
#include "core/ops/blocks.h"
#include "core/ops/check.h"
#include "core/ops/elementwise.h"

namespace mmfree {

Tensor step_tensor(const StepParams& step, Device device) {
  Tensor t({kStepParams}, DType::f64);
  std::memcpy(t.raw_mut(), &step, sizeof step);
  return t.to(device);
}

StepParams step_params(const Tensor& step) {
  check_tensor("step_params", "step", step, {kStepParams}, DType::f64);
  StepParams p;
  std::memcpy(static_cast<void*>(&p), step.to(Device::cpu).raw(), sizeof p);
  return p;
}

namespace {

/// `add_squares` computes Σ grads² of so many blocks.
void begin(Device device, int64_t blocks, const std::function<void(Tensor&)>& add_squares, Tensor& step,
           const Tensor& sums, const Tensor& loss) {
  check_tensor("adamw_begin", "step", step, {kStepParams}, DType::f64);
  check_optional("adamw_begin", "sums", sums, {2, blocks}, DType::f64);
  check_optional("adamw_begin", "loss", loss, {1}, DType::f64);
  check_device("adamw_begin", device, {&step, &sums, &loss});
  Tensor totals = Tensor::zeros({3}, DType::f64, device);
  Tensor squares = totals.slice(0, 1), moments = totals.slice(1, 2), finite = totals.slice(2, 3);
  add_squares(squares);
  // 0 times what is not finite is NaN.
  if (sums.defined()) sum(sums.slice(0, 1), 0, finite), sum(sums.slice(1, 2), 1, moments);
  if (loss.defined()) sum(loss, 0, finite, 1);
  const AdamwBeginArgs args{totals.data<double>(), reinterpret_cast<StepParams*>(step.mut<double>())};
  MMFREE_DISPATCH(device, adamw_begin, args);
}

}  // namespace

void adamw_begin(const Tensor& grads, Tensor& step, const Tensor& sums, const Tensor& loss) {
  begin(
      grads.device(), grads.size() / kParamBlock, [&](Tensor& total) { sum_of_squares(grads, total); }, step, sums,
      loss);
}

void adamw_begin_blocks(const Tensor& squares, Tensor& step, const Tensor& sums, const Tensor& loss) {
  begin(
      squares.device(), squares.size(), [&](Tensor& total) { add_blocks(squares, total); }, step, sums, loss);
}

void adamw(Tensor& values, const Tensor& grads, Tensor& m, Tensor& v, const Tensor& rates, const Tensor& step,
           Tensor& sums) {
  check_optional("adamw", "sums", sums, {2, values.size() / kParamBlock}, DType::f64);
  const auto row = [&](int64_t i) { return sums.defined() ? sums.slice(i, i + 1).reshape({sums.dim(1)}) : Tensor(); };
  Tensor abs_sums = row(0), moment_sums = row(1);
  adamw(values, grads, m, v, rates, step, abs_sums, moment_sums);
}

void adamw(Tensor& values, const Tensor& grads, Tensor& m, Tensor& v, const Tensor& rates, const Tensor& step,
           Tensor& abs_sums, Tensor& moment_sums) {
  check_float("adamw", "values", values, 1);
  const int64_t size = values.size();
  MMFREE_CHECK(ShapeError, size % kParamBlock == 0, "adamw: the flat buffer of ", size, " elements is not padded to ",
               kParamBlock);
  check_tensor("adamw", "grads", grads, {size}, values.dtype());
  check_tensor("adamw", "m", m, {size}, values.dtype());
  check_tensor("adamw", "v", v, {size}, values.dtype());
  check_tensor("adamw", "rates", rates, {size / kParamBlock, 2}, DType::f64);
  check_tensor("adamw", "step", step, {kStepParams}, DType::f64);
  check_optional("adamw", "abs_sums", abs_sums, {size / kParamBlock}, DType::f64);
  check_optional("adamw", "moment_sums", moment_sums, {size / kParamBlock}, DType::f64);
  MMFREE_CHECK(ShapeError, abs_sums.defined() == moment_sums.defined(), "adamw: one of the sums without the other");
  check_device("adamw", values.device(), {&grads, &m, &v, &rates, &step, &abs_sums, &moment_sums});
  const AdamwArgs args{values.raw_mut(),
                       grads.raw(),
                       m.raw_mut(),
                       v.raw_mut(),
                       rates.data<double>(),
                       abs_sums.defined() ? abs_sums.mut<double>() : nullptr,
                       moment_sums.defined() ? moment_sums.mut<double>() : nullptr,
                       size / kParamBlock,
                       reinterpret_cast<const StepParams*>(step.data<double>()),
                       values.dtype()};
  MMFREE_DISPATCH(values.device(), adamw, args);
}

}  // namespace mmfree
