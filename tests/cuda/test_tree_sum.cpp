#include "core/ops/tree_sum.h"
#include "tests/cuda/transfer.h"

using namespace mmfree;

TEST(CudaTreeSum, EqualsTheCpuToTheBit) {
  MMFREE_NEEDS_GPU();
  for (int64_t count : {1, 2, 4, 8, 16, 64, 256})
    for (int64_t n : {0, 1, 4, 1001, 4096}) {
      const Tensor terms = random_tensor({count * n}, DType::f32, uint32_t(count + n));
      Tensor expected({n}, DType::f32), got = empty_on_gpu({n}, DType::f32);
      tree_sum(terms, count, expected);
      tree_sum(to_gpu(terms), count, got);
      EXPECT_TRUE(same_bits(expected, from_gpu(got))) << count << " terms of " << n;
    }
}
