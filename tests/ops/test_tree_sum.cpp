// tree_sum against a tree written as a recursion, and against trees of trees.
#include <gtest/gtest.h>

#include "core/ops/tree_sum.h"
#include "tests/support/tensors.h"
#include "tests/support/tiny_run.h"

namespace mmfree {
namespace {

template <class T>
T tree(const T* terms, int64_t count, int64_t n, int64_t i) {
  if (count == 1) return terms[i];
  return tree(terms, count / 2, n, i) + tree(terms + count / 2 * n, count / 2, n, i);
}

template <class T>
void expect_trees(DType dtype) {
  for (int64_t count : {1, 2, 4, 8, 16, 32, 128})
    for (int64_t n : {0, 1, 7, 1024, 2500}) {
      const Tensor terms = random_tensor({count * n}, dtype, uint32_t(count + n));
      Tensor out({n}, dtype);
      for (int threads : {1, 3}) {
        const Threads scope(threads);
        tree_sum(terms, count, out);
        for (int64_t i = 0; i < n; ++i)
          ASSERT_EQ(tree(terms.data<T>(), count, n, i), out.data<T>()[i]) << count << " terms, element " << i;
      }
    }
}

TEST(TreeSum, IsABalancedTree) {
  expect_trees<float>(DType::f32);
  expect_trees<double>(DType::f64);
}

TEST(TreeSum, OfSubtreesIsTheTreeOfAll) {
  constexpr int64_t kAll = 16, kSize = 100;
  const Tensor terms = random_tensor({kAll * kSize}, DType::f32, 5);
  Tensor whole({kSize}, DType::f32), again({kSize}, DType::f32);
  tree_sum(terms, kAll, whole);
  for (int64_t parts : {2, 4, 8}) {
    Tensor subtrees({parts * kSize}, DType::f32);
    for (int64_t p = 0; p < parts; ++p) {
      Tensor sum = subtrees.slice(p * kSize, (p + 1) * kSize);
      tree_sum(terms.slice(p * kAll / parts * kSize, (p + 1) * kAll / parts * kSize), kAll / parts, sum);
    }
    tree_sum(subtrees, parts, again);
    EXPECT_TRUE(same_bits(whole, again)) << parts;
  }
}

TEST(TreeSum, NamesWhatDoesNotFit) {
  Tensor out({4}, DType::f32), wrong({4}, DType::i32);
  EXPECT_THROW(tree_sum(Tensor({12}, DType::f32), 3, out), ShapeError);
  EXPECT_THROW(tree_sum(Tensor({8}, DType::f32), 4, out), ShapeError);
  EXPECT_THROW(tree_sum(Tensor({8}, DType::f64), 2, out), DTypeError);
  EXPECT_THROW(tree_sum(Tensor({8}, DType::i32), 2, wrong), DTypeError);
}

}  // namespace
}  // namespace mmfree
