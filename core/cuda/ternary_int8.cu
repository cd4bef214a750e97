#include "core/ops/ternary_int8.h"

namespace mmfree::cuda {

void ternary_dx_int8(const TernaryDxInt8Args&) {
  throw DeviceError("train.backward: int8 products are not available on a GPU; choose compute");
}

void ternary_dw_int8(const TernaryDwInt8Args&) {
  throw DeviceError("train.backward: int8 products are not available on a GPU; choose compute");
}

}  // namespace mmfree::cuda
