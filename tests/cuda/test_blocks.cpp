#include "core/ops/adamw.h"
#include "core/ops/blocks.h"
#include "core/ops/elementwise.h"
#include "tests/cuda/transfer.h"

using namespace mmfree;

TEST(CudaBlocks, SquaresOfPartsAddToTheSumOfSquares) {
  MMFREE_NEEDS_GPU();
  for (int64_t blocks : {1, 7, 3000}) {
    const Tensor x = to_gpu(random_tensor({blocks * kParamBlock}, DType::f32, 3));
    Tensor whole = empty_on_gpu({1}, DType::f64), added = empty_on_gpu({1}, DType::f64),
           squares = empty_on_gpu({blocks}, DType::f64);
    sum_of_squares(x, whole);
    for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, blocks / 2}, {blocks / 2, blocks}}) {
      Tensor part = squares.slice(begin, end);
      squares_of_blocks(x.slice(begin * kParamBlock, end * kParamBlock), part);
    }
    add_blocks(squares, added);
    EXPECT_TRUE(same_bits(from_gpu(whole), from_gpu(added))) << blocks;
  }
}

TEST(CudaBlocks, AreCopiedByTheirNumbers) {
  MMFREE_NEEDS_GPU();
  const Tensor from = random_tensor({4 * kParamBlock}, DType::f32, 1);
  Tensor expected = random_tensor({3 * kParamBlock}, DType::f32, 2), got = to_gpu(expected);
  const int32_t source[] = {3, 1}, target[] = {0, 2};
  const Tensor from_index = Tensor::from({2}, source), to_index = Tensor::from({2}, target);
  copy_blocks(from, from_index, expected, to_index);
  copy_blocks(to_gpu(from), to_gpu(from_index), got, to_gpu(to_index));
  EXPECT_TRUE(same_bits(expected, from_gpu(got)));
}
