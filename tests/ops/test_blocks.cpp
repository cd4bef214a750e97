// Ops on blocks of flat buffers: sums of parts equal the sum of the whole to the bit, and copies go where they should.
#include <gtest/gtest.h>

#include "core/ops/adamw.h"
#include "core/ops/blocks.h"
#include "tests/support/tensors.h"

namespace mmfree {
namespace {

TEST(Blocks, SquaresOfPartsAddToTheSumOfSquares) {
  constexpr int64_t kBlocks = 11;
  for (DType dtype : {DType::f32, DType::f64}) {
    const Tensor x = random_tensor({kBlocks * kParamBlock}, dtype, 3);
    Tensor whole({1}, DType::f64), added({1}, DType::f64), squares({kBlocks}, DType::f64);
    sum_of_squares(x, whole);
    for (const auto& [begin, end] : {std::pair{0, 4}, {4, 4}, {4, kBlocks}}) {
      Tensor part = squares.slice(begin, end);
      squares_of_blocks(x.slice(begin * kParamBlock, end * kParamBlock), part);
    }
    add_blocks(squares, added);
    EXPECT_TRUE(same_bits(whole, added)) << name_of(dtype);
  }
}

TEST(Blocks, AreCopiedByTheirNumbers) {
  const Tensor from = random_tensor({4 * kParamBlock}, DType::f32, 1),
               before = random_tensor({3 * kParamBlock}, DType::f32, 2);
  Tensor to = before.clone();
  const int32_t source[] = {3, 1}, target[] = {0, 2};
  copy_blocks(from, Tensor::from({2}, source), to, Tensor::from({2}, target));
  const auto block = [](const Tensor& t, int64_t b) { return t.slice(b * kParamBlock, (b + 1) * kParamBlock); };
  EXPECT_TRUE(same_bits(block(from, 3), block(to, 0)));
  EXPECT_TRUE(same_bits(block(before, 1), block(to, 1)));
  EXPECT_TRUE(same_bits(block(from, 1), block(to, 2)));
}

TEST(Blocks, NameWhatDoesNotFit) {
  Tensor squares({1}, DType::f64), out({1}, DType::f64), to({kParamBlock}, DType::f32);
  EXPECT_THROW(squares_of_blocks(Tensor({kParamBlock + 1}, DType::f32), squares), ShapeError);
  EXPECT_THROW(squares_of_blocks(Tensor({2 * kParamBlock}, DType::f32), squares), ShapeError);
  EXPECT_THROW(add_blocks(Tensor({2}, DType::f32), out), DTypeError);
  EXPECT_THROW(copy_blocks(Tensor({kParamBlock}, DType::f64), Tensor({1}, DType::i32), to, Tensor({1}, DType::i32)),
               DTypeError);
  EXPECT_THROW(copy_blocks(to, Tensor({1}, DType::i32), to, Tensor({2}, DType::i32)), ShapeError);
}

}  // namespace
}  // namespace mmfree
