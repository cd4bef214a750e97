#include "core/ops/code_bits.h"

#include "core/dispatch.h"
#include "core/ops/check.h"

namespace mmfree {
namespace {

void check(const char* op, const Tensor& codes, const Tensor& packed) {
  MMFREE_CHECK(ShapeError, codes.size() % kPackedCodes == 0, op, ": ", codes.size(), " codes are no multiple of ",
               kPackedCodes);
  check_tensor(op, "codes", codes, {codes.size()}, DType::i8);
  check_tensor(op, "packed", packed, {codes.size() / 4}, DType::u8);
  check_device(op, codes.device(), {&packed});
}

}  // namespace

void pack_codes(const Tensor& codes, Tensor& packed) {
  check("pack_codes", codes, packed);
  if (codes.size() == 0) return;
  const PackCodesArgs args{codes.data<int8_t>(), packed.mut<uint8_t>(), codes.size()};
  MMFREE_DISPATCH(codes.device(), pack_codes, args);
}

void unpack_codes(const Tensor& packed, Tensor& codes) {
  check("unpack_codes", codes, packed);
  if (codes.size() == 0) return;
  const UnpackCodesArgs args{packed.data<uint8_t>(), codes.mut<int8_t>(), codes.size()};
  MMFREE_DISPATCH(codes.device(), unpack_codes, args);
}

}  // namespace mmfree
