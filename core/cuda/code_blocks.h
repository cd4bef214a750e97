#pragma once
#include <cstdint>

namespace mmfree::cuda {

/// The codes q [n, k] of activations times factor[n] = step[n] * row_step[n], rounded again in blocks of
/// kActivationBlock rows with a scale per block and column, and transposed:
///
///   g = q * factor, m = the largest |g| of the block's column, scale = m / 127,
///   blocks[k, n] = round_half_even(g * (127 / m)), each product rounded; all as gradient_scale says
///
/// A factor that is not finite makes the scales of its block so. Rows behind n are zeros.
///
/// blocks  int8 [k, depth], depth = n rounded up to whole blocks
/// scale   float [depth / kActivationBlock, stride], stride = scale_stride(k); columns behind k are left alone
void code_blocks(const std::int8_t* q, const float* step, const float* row_step, std::int8_t* blocks, float* scale,
                 std::int64_t n, std::int64_t k);

}  // namespace mmfree::cuda
