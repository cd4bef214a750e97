#include "core/ops/code_bits.h"
#include "tests/cuda/transfer.h"

using namespace mmfree;

TEST(CudaCodeBits, EqualTheCpus) {
  MMFREE_NEEDS_GPU();
  for (int64_t n : {0, 16, 4096, 16 * 33333}) {
    Tensor codes({n}, DType::i8), packed({n / 4}, DType::u8);
    for (int64_t i = 0; i < n; ++i) codes.mut<int8_t>()[i] = int8_t((i * i / 7 + i) % 3 - 1);
    pack_codes(codes, packed);
    Tensor there({n / 4}, DType::u8, Device::cuda), back({n}, DType::i8, Device::cuda);
    pack_codes(to_gpu(codes), there);
    EXPECT_TRUE(same_bits(packed, from_gpu(there))) << n;
    unpack_codes(there, back);
    EXPECT_TRUE(same_bits(codes, from_gpu(back))) << n;
  }
}
