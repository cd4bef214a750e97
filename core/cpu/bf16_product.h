#pragma once
#include "core/ops/matmul.h"

namespace mmfree::cpu {

/// Whether this machine has the instructions of `bf16_product`.
bool has_bf16_product();

/// The product of `matmul` with f32 operands rounded to bf16, b not transposed: pairs of products are added at a time,
/// in f32. The bits do not depend on the number of threads.
void bf16_product(const MatmulArgs& args);

}  // namespace mmfree::cpu
