// Codes at two bits each against their formula, and back.
#include <gtest/gtest.h>

#include "core/ops/code_bits.h"
#include "tests/support/tensors.h"
#include "tests/support/tiny_run.h"

namespace mmfree {
namespace {

TEST(CodeBits, ArePackedInFoursAndBack) {
  for (int64_t n : {0, 16, 4096, 16 * 33333})
    for (int threads : {1, 3}) {
      const Threads scope(threads);
      Tensor codes({n}, DType::i8), packed({n / 4}, DType::u8), back({n}, DType::i8);
      for (int64_t i = 0; i < n; ++i) codes.mut<int8_t>()[i] = int8_t((i * i / 7 + i) % 3 - 1);
      pack_codes(codes, packed);
      for (int64_t j = 0; j < n / 4; ++j) {
        const int8_t* c = codes.data<int8_t>() + 4 * j;
        ASSERT_EQ(packed.data<uint8_t>()[j], c[0] + 1 + 4 * (c[1] + 1) + 16 * (c[2] + 1) + 64 * (c[3] + 1)) << j;
      }
      unpack_codes(packed, back);
      EXPECT_TRUE(same_bits(codes, back)) << n;
    }
}

TEST(CodeBits, NameWhatDoesNotFit) {
  Tensor codes({16}, DType::i8), packed({4}, DType::u8), odd({20}, DType::i8), wide({16}, DType::f32);
  expect_error<ShapeError>({"pack_codes", "20", "16"}, [&] { pack_codes(odd, packed); });
  expect_error<ShapeError>({"unpack_codes", "packed"}, [&] { unpack_codes(Tensor({8}, DType::u8), codes); });
  expect_error<DTypeError>({"pack_codes", "codes"}, [&] { pack_codes(wide, packed); });
}

}  // namespace
}  // namespace mmfree
