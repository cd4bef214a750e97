#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace mmfree::cuda {

/// Whether ternary_mma can compute an [n, o] output over depth k on the current device: compute capability 9.0 (the
/// code uses Hopper's wgmma and bulk tensor copies), n, o, k >= 1, k % 16 == 0 and o % 8 == 0 (rows of q, w and y start
/// at multiples of 16 bytes), all at most 2^24 and k below it (no sum overflows int32). Throws DeviceError if the
/// device cannot be asked.
bool ternary_mma_fits(std::int64_t n, std::int64_t o, std::int64_t k);

/// Product of int8 activations with ternary weights on the tensor cores:
///
///   y[i, j] = bf16( float(sum_l q[i, l] * w[j, l]) * (step[i] * scale[0]) )
///
/// The sum is exact in int32. Each of the two float multiplications, the conversion of the sum and the final one to
/// bf16 round to nearest even, so y has the bits of the formula.
///
/// q      int8 [n, k] row-major, the whole range -128..127
/// step   float [n], one quantization step per row of q
/// w      int8 [o, k] row-major, weights -1, 0, 1 (other int8 values work if the sums fit in int32)
/// scale  float [1] in device memory
/// y      bf16 [n, o] row-major; no byte outside it is written
/// beta   0; or another number: y[i, j] = bf16( beta * y[i, j] + the value above ), the product and the sum rounded
///
/// q, w and y start at multiples of 16 bytes; shapes as ternary_mma_fits. Only launches on `stream`: it neither
/// allocates nor synchronises, and may be captured in a graph. Throws ShapeError for shapes or addresses that do not
/// fit, DeviceError if the launch fails.
void ternary_mma(const std::int8_t* q, const float* step, const std::int8_t* w, const float* scale, __nv_bfloat16* y,
                 std::int64_t n, std::int64_t o, std::int64_t k, float beta, cudaStream_t stream);

}  // namespace mmfree::cuda
