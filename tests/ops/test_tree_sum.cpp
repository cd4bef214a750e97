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

/// tree_sum of `count` terms that stand one behind the other; `place` is the one given apart.
void sum_all(const Tensor& terms, int64_t count, int64_t place, Tensor& out) {
  const int64_t n = out.size();
  Tensor others({(count - 1) * n}, out.dtype());
  others.slice(0, place * n).copy_from(terms.slice(0, place * n));
  others.slice(place * n, others.size()).copy_from(terms.slice((place + 1) * n, count * n));
  tree_sum(others, terms.slice(place * n, (place + 1) * n), place, out);
}

template <class T>
void expect_trees(DType dtype) {
  for (int64_t count : {1, 2, 4, 8, 16, 32, 128})
    for (int64_t n : {0, 1, 7, 1024, 2500}) {
      const Tensor terms = random_tensor({count * n}, dtype, uint32_t(count + n));
      Tensor out({n}, dtype);
      for (int threads : {1, 3}) {
        const Threads scope(threads);
        sum_all(terms, count, threads == 1 ? count / 3 : count - 1, out);
        for (int64_t i = 0; i < n; ++i)
          ASSERT_EQ(tree(terms.data<T>(), count, n, i), out.data<T>()[i]) << count << " terms, element " << i;
      }
    }
}

TEST(TreeSum, IsABalancedTree) {
  expect_trees<float>(DType::f32);
  expect_trees<double>(DType::f64);
}

TEST(TreeSum, MayTakeThePlaceOfItsOwnTerm) {
  const Tensor terms = random_tensor({4 * 3000}, DType::f32, 2);
  Tensor apart({3000}, DType::f32), mine = terms.slice(3000, 6000).clone();
  sum_all(terms, 4, 1, apart);
  Tensor others({3 * 3000}, DType::f32);
  others.slice(0, 3000).copy_from(terms.slice(0, 3000));
  others.slice(3000, 9000).copy_from(terms.slice(6000, 12000));
  tree_sum(others, mine, 1, mine);
  EXPECT_TRUE(same_bits(apart, mine));
}

TEST(TreeSum, OfSubtreesIsTheTreeOfAll) {
  constexpr int64_t kAll = 16, kSize = 100;
  const Tensor terms = random_tensor({kAll * kSize}, DType::f32, 5);
  Tensor whole({kSize}, DType::f32), again({kSize}, DType::f32);
  sum_all(terms, kAll, 11, whole);
  for (int64_t parts : {2, 4, 8}) {
    Tensor subtrees({parts * kSize}, DType::f32);
    for (int64_t p = 0; p < parts; ++p) {
      Tensor sum = subtrees.slice(p * kSize, (p + 1) * kSize);
      sum_all(terms.slice(p * kAll / parts * kSize, (p + 1) * kAll / parts * kSize), kAll / parts, 0, sum);
    }
    sum_all(subtrees, parts, parts - 1, again);
    EXPECT_TRUE(same_bits(whole, again)) << parts;
  }
}

TEST(TreeSum, NamesWhatDoesNotFit) {
  Tensor out({4}, DType::f32), wrong({4}, DType::i32);
  const Tensor mine({4}, DType::f32);
  EXPECT_THROW(tree_sum(Tensor({8}, DType::f32), mine, 0, out), ShapeError) << "three terms";
  EXPECT_THROW(tree_sum(Tensor({6}, DType::f32), mine, 0, out), ShapeError);
  EXPECT_THROW(tree_sum(Tensor({4}, DType::f32), mine, 2, out), ShapeError) << "no such term";
  EXPECT_THROW(tree_sum(Tensor({4}, DType::f64), mine, 0, out), DTypeError);
  EXPECT_THROW(tree_sum(Tensor({4}, DType::i32), wrong, 0, wrong), DTypeError);
}

}  // namespace
}  // namespace mmfree
