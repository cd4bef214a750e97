#include "core/ops/adamw.h"

#include <cstring>

#include "core/dispatch.h"
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

void adamw_begin(const Tensor& grads, Tensor& step, const Tensor& m, const std::vector<Tensor>& finite) {
  check_tensor("adamw_begin", "step", step, {kStepParams}, DType::f64);
  check_device("adamw_begin", grads.device(), {&step, &m});
  Tensor sums = Tensor::zeros({3}, DType::f64, grads.device());
  Tensor squares = sums.slice(0, 1), m_squares = sums.slice(1, 2), doubt = sums.slice(2, 3);
  sum_of_squares(grads, squares);
  if (m.defined()) sum_of_squares(m, m_squares);
  for (const Tensor& t : finite) sum(t, 0, doubt, 1);  // 0 times what is not finite is NaN
  const AdamwBeginArgs args{sums.data<double>(), reinterpret_cast<StepParams*>(step.mut<double>())};
  MMFREE_DISPATCH(grads.device(), adamw_begin, args);
}

void adamw(Tensor& values, const Tensor& grads, Tensor& m, Tensor& v, const Tensor& decays, const Tensor& step,
           Tensor& abs_sums) {
  check_float("adamw", "values", values, 1);
  const int64_t size = values.size();
  MMFREE_CHECK(ShapeError, size % kParamBlock == 0, "adamw: the flat buffer of ", size, " elements is not padded to ",
               kParamBlock);
  check_tensor("adamw", "grads", grads, {size}, values.dtype());
  check_tensor("adamw", "m", m, {size}, values.dtype());
  check_tensor("adamw", "v", v, {size}, values.dtype());
  check_tensor("adamw", "decays", decays, {size / kParamBlock}, DType::u8);
  check_tensor("adamw", "step", step, {kStepParams}, DType::f64);
  check_optional("adamw", "abs_sums", abs_sums, {size / kParamBlock}, DType::f64);
  check_device("adamw", values.device(), {&grads, &m, &v, &decays, &step, &abs_sums});
  const AdamwArgs args{values.raw_mut(),
                       grads.raw(),
                       m.raw_mut(),
                       v.raw_mut(),
                       decays.data<uint8_t>(),
                       abs_sums.defined() ? abs_sums.mut<double>() : nullptr,
                       size / kParamBlock,
                       reinterpret_cast<const StepParams*>(step.data<double>()),
                       values.dtype()};
  MMFREE_DISPATCH(values.device(), adamw, args);
}

}  // namespace mmfree
