#include "core/cuda/common.cuh"
#include "core/ops/code_bits.h"

namespace mmfree::cuda {
namespace {

constexpr int kThreads = 256;
constexpr uint32_t kOnes = 0x01010101;

/// Four codes, one a byte, as a byte.
__device__ uint32_t packed_byte(uint32_t codes) {
  const uint32_t plus = __vadd4(codes, kOnes);
  return (plus | plus >> 6 | plus >> 12 | plus >> 18) & 0xff;
}

__device__ uint32_t unpacked_word(uint32_t byte) {
  return __vsub4((byte & 3) | (byte & 0xc) << 6 | (byte & 0x30) << 12 | (byte & 0xc0) << 18, kOnes);
}

/// A thread has kPackedCodes codes.
__global__ void __launch_bounds__(kThreads) pack(const uint4* codes, uint32_t* packed, int64_t count) {
  begin_kernel();
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const uint4 c = codes[i];
  packed[i] = packed_byte(c.x) | packed_byte(c.y) << 8 | packed_byte(c.z) << 16 | packed_byte(c.w) << 24;
}

__global__ void __launch_bounds__(kThreads) unpack(const uint32_t* packed, uint4* codes, int64_t count) {
  begin_kernel();
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const uint32_t p = packed[i];
  codes[i] = {unpacked_word(p & 0xff), unpacked_word(p >> 8 & 0xff), unpacked_word(p >> 16 & 0xff),
              unpacked_word(p >> 24)};
}

void require_aligned(const char* op, const void* codes, const void* packed) {
  MMFREE_CHECK(ShapeError, reinterpret_cast<uintptr_t>(codes) % 16 == 0 && reinterpret_cast<uintptr_t>(packed) % 4 == 0,
               op, ": codes and packed codes must be aligned to 16 and 4 bytes");
}

}  // namespace

void pack_codes(const PackCodesArgs& g) {
  require_aligned("pack_codes", g.codes, g.packed);
  const int64_t count = g.count / kPackedCodes;
  launch_kernel(pack, {unsigned(ceil_div(count, kThreads)), kThreads}, reinterpret_cast<const uint4*>(g.codes),
                reinterpret_cast<uint32_t*>(g.packed), count);
  check_launch("pack_codes");
}

void unpack_codes(const UnpackCodesArgs& g) {
  require_aligned("unpack_codes", g.codes, g.packed);
  const int64_t count = g.count / kPackedCodes;
  launch_kernel(unpack, {unsigned(ceil_div(count, kThreads)), kThreads}, reinterpret_cast<const uint32_t*>(g.packed),
                reinterpret_cast<uint4*>(g.codes), count);
  check_launch("unpack_codes");
}

}  // namespace mmfree::cuda
