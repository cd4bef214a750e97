#include "core/ops/adamw.h"

#include "core/dispatch.h"
#include "core/ops/check.h"

namespace mmfree {

void adamw(Tensor& values, const Tensor& grads, Tensor& m, Tensor& v, const Tensor& decays, const StepParams& step) {
  check_float("adamw", "values", values, 1);
  const int64_t size = values.size();
  MMFREE_CHECK(ShapeError, size % kParamBlock == 0, "adamw: the flat buffer of ", size, " elements is not padded to ",
               kParamBlock);
  check_tensor("adamw", "grads", grads, {size}, values.dtype());
  check_tensor("adamw", "m", m, {size}, values.dtype());
  check_tensor("adamw", "v", v, {size}, values.dtype());
  check_tensor("adamw", "decays", decays, {size / kParamBlock}, DType::u8);
  const AdamwArgs args{values.raw_mut(),       grads.raw(),        m.raw_mut(), v.raw_mut(),
                       decays.data<uint8_t>(), size / kParamBlock, &step,       values.dtype()};
  MMFREE_DISPATCH(values.device(), adamw, args);
}

}  // namespace mmfree
