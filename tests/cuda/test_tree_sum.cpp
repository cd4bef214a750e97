#include "core/ops/tree_sum.h"
#include "tests/cuda/transfer.h"

using namespace mmfree;

TEST(CudaTreeSum, EqualsTheCpuToTheBit) {
  MMFREE_NEEDS_GPU();
  for (int64_t count : {1, 2, 4, 8, 16, 64, 256})
    for (int64_t n : {0, 1, 4, 1001, 4096}) {
      const Tensor terms = random_tensor({count * n}, DType::f32, uint32_t(count + n));
      Tensor expected({n}, DType::f32), got = empty_on_gpu({n}, DType::f32);
      const Tensor others = terms.slice(n, count * n), mine = terms.slice(0, n);
      for (const int64_t place : {int64_t{0}, count / 3, count - 1}) {
        tree_sum(others, mine, place, expected);
        tree_sum(to_gpu(others), to_gpu(mine), place, got);
        EXPECT_TRUE(same_bits(expected, from_gpu(got))) << count << " terms of " << n << ", mine at " << place;
        Tensor own = to_gpu(mine);
        tree_sum(to_gpu(others), own, place, own);
        EXPECT_TRUE(same_bits(expected, from_gpu(own))) << count << " terms of " << n << " in place";
      }
    }
}
