#pragma once
#include "core/tensor.h"

/// Ternary codes at two bits each, for sending: on a GPU a matrix has a byte per code.
namespace mmfree {

/// Codes that pack_codes takes at a time.
inline constexpr int64_t kPackedCodes = 16;

/// packed[j] = Σ_k (codes[4 j + k] + 1) · 4^k, k = 0 .. 3.
///
/// @param codes   [n] i8 in {-1, 0, 1}; n is a multiple of kPackedCodes
/// @param packed  out [n / 4] u8
/// @throws ShapeError, DTypeError, DeviceError
void pack_codes(const Tensor& codes, Tensor& packed);

/// The inverse.
void unpack_codes(const Tensor& packed, Tensor& codes);

struct PackCodesArgs {
  const int8_t* codes;
  uint8_t* packed;
  int64_t count;  ///< of codes
};
struct UnpackCodesArgs {
  const uint8_t* packed;
  int8_t* codes;
  int64_t count;
};

namespace cpu {
void pack_codes(const PackCodesArgs&);
void unpack_codes(const UnpackCodesArgs&);
}  // namespace cpu
namespace cuda {
void pack_codes(const PackCodesArgs&);
void unpack_codes(const UnpackCodesArgs&);
}  // namespace cuda

}  // namespace mmfree
