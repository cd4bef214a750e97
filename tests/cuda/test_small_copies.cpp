#if MMFREE_CUDA
#include <cstring>

#include "core/cuda/small_copies.h"
#include "tests/cuda/transfer.h"

using namespace mmfree;

/// Copies that begin and end at any byte, more of them than a launch takes, leave what lies between them alone.
TEST(CudaSmallCopies, AreThoseOfTheCpu) {
  MMFREE_NEEDS_GPU();
  constexpr int64_t kRoom = 4 << 20;
  std::mt19937 random(5);
  Tensor from({kRoom}, DType::u8), to({kRoom}, DType::u8);
  for (int64_t i = 0; i < kRoom; ++i)
    from.mut<uint8_t>()[i] = uint8_t(random()), to.mut<uint8_t>()[i] = uint8_t(random());
  const Tensor gpu_from = to_gpu(from);
  Tensor gpu_to = to_gpu(to);
  std::vector<cuda::SmallCopy> copies;
  const auto add = [&](int64_t at, int64_t source, int64_t bytes) {
    copies.push_back({gpu_to.raw_mut() + at, gpu_from.raw() + source, size_t(bytes)});
    std::memcpy(to.mut<uint8_t>() + at, from.data<uint8_t>() + source, size_t(bytes));
  };
  int64_t at = 1;
  for (int i = 0; i < 150; ++i) {
    const int64_t bytes = i % 7 == 0 ? 0 : 1 + int64_t(random() % (i % 5 == 0 ? 60000 : 40));
    add(at, int64_t(random() % (1 << 20)), bytes);
    at += bytes + int64_t(random() % 3);
  }
  at = (at + 15) / 16 * 16;
  for (const int64_t shift : {16, 8, 4, 2, 1}) {  // the widest units that fit both ends
    add(at + shift, 16 + shift, 100'003);
    at += 100'032;
  }
  add(at, 0, 1 << 20);
  ASSERT_LE(at + (1 << 20), kRoom);
  cuda::make_copies(copies);
  EXPECT_TRUE(same_bits(to, from_gpu(gpu_to)));
  cuda::make_copies({});
}
#endif
