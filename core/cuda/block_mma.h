#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace mmfree::cuda {

/// Product of int8 matrices whose depth is divided into blocks of kActivationBlock with scales of their own:
///
///   out[i, j] = beta * out[i, j] + sum over blocks b in order of float(sum over n in b of a[n, i] * x[j, n]) *
///   scale[b, j]
///
/// The inner sum is exact in int32; every term is one fma. The blocks are divided into activation_parts consecutive
/// parts: each part is summed by itself from 0, and the parts are added to beta * out one after the other.
///
/// a      int8 [n, m] row-major, -127..127
/// x      int8 [j, depth] row-major, depth = n rounded up to whole blocks, -127..127; what is behind n does not count
/// scale  float [blocks, stride], stride = scale_stride(j)
/// out    float [m, j]
/// parts  float [activation_parts - 1, m, j], workspace; may be null for one part
struct BlockProduct {
  const std::int8_t *a, *x;
  const float* scale;
  float *parts, *out;
  std::int64_t m, j, n;
  float beta;
};

/// Whether block_mma can compute the product on the current device: compute capability 9.0, m % 16 == 0, j % 4 == 0,
/// and a, x, scale, parts and out start at multiples of 16 bytes.
bool block_mma_fits(const BlockProduct& p);
/// On the tensor cores. Only launches on the stream of all kernels.
void block_mma(const BlockProduct& p);
/// The same bits on any chip, for any sizes, slowly.
void block_product(const BlockProduct& p);

}  // namespace mmfree::cuda
