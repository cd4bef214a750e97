#pragma once
#include <cstdint>

#include "core/dtype.h"

namespace mmfree::cuda {

/// sums[n, o] = Σ_k q[n, k] w[o, k], exact, by cuBLASLt. K and O are multiples of 4.
void int8_product(const int8_t* q, const int8_t* w, int32_t* sums, int64_t n, int64_t o, int64_t k);

}  // namespace mmfree::cuda
