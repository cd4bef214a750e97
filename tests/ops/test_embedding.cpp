#include <gtest/gtest.h>

#include "core/ops/embedding.h"
#include "tests/support/tensors.h"

using namespace mmfree;

namespace {

Tensor forward(const Tensor& table, const Tensor& ids) {
  Tensor y({ids.size(), table.dim(1)}, table.dtype());
  embedding(table, ids, y);
  return y;
}

Tensor ids_of(std::vector<int32_t> ids) { return Tensor::from({int64_t(ids.size())}, ids.data()); }

}  // namespace

TEST(Embedding, CopiesRows) {
  for (DType t : {DType::f64, DType::f32})
    for (int64_t d : kOddColumns)
      for (int64_t n : {1, 130}) {
        const Tensor table = random_tensor({37, d}, t, 1), ids = random_ids(n, 37, 2), y = forward(table, ids);
        for (int64_t i = 0; i < n; ++i) {
          const int32_t id = ids.data<int32_t>()[i];
          ASSERT_TRUE(same_bits(table.slice(id, id + 1), y.slice(i, i + 1)));
        }
      }
}

TEST(Embedding, BackwardSumsRepeatedIdsInOrder) {
  for (DType t : {DType::f64, DType::f32})
    for (int64_t v : {1, 5, 3000}) {
      const int64_t n = 200, d = 33;
      const Tensor ids = random_ids(n, v, 3), dy = random_tensor({n, d}, t, 4);
      Tensor dtable = full({v, d}, t, kNaN), expected = Tensor::zeros({v, d}, t);
      embedding_backward(ids, dy, dtable, 0);
      for (int64_t i = 0; i < n; ++i)
        for (int64_t k = 0; k < d; ++k) {
          const int64_t to = ids.data<int32_t>()[i] * d + k;
          set(expected, to, at(expected, to) + at(dy, i * d + k));
        }
      EXPECT_TRUE(same_bits(expected, dtable)) << v;
    }
}

TEST(Embedding, BackwardHonoursBeta) {
  for (DType t : {DType::f64, DType::f32}) {
    const Tensor ids = random_ids(50, 9, 3), dy = random_tensor({50, 31}, t, 4);
    expect_beta_semantics({11, 31}, t, [&](Tensor& dtable, double beta) { embedding_backward(ids, dy, dtable, beta); });
  }
}

TEST(Embedding, GivesTheSameBitsForAnyNumberOfThreads) {
  const Tensor table = random_tensor({5000, 31}, DType::f32, 1), ids = random_ids(900, 5000, 2);
  const Tensor dy = random_tensor({900, 31}, DType::f32, 3);
  expect_same_bits_for_any_threads([&] {
    Tensor dtable({5000, 31}, DType::f32);
    embedding_backward(ids, dy, dtable, 0);
    return std::vector<Tensor>{forward(table, ids), dtable};
  });
}

TEST(Embedding, CarriesNaN) {
  Tensor table = random_tensor({3, 5}, DType::f32, 1);
  set(table, 5 + 2, kNaN);
  EXPECT_EQ(2, count_non_finite(forward(table, ids_of({1, 0, 1}))));
}

TEST(Embedding, NamesTheFirstIdOutsideTheVocabulary) {
  const Tensor table = random_tensor({7, 3}, DType::f32, 1);
  expect_error<DataError>({"embedding", "token id 7 ", "position 2", "0..6"}, [&] {
    forward(table, ids_of({0, 6, 7, -1}));
  });
  expect_error<DataError>({"embedding", "token id -1", "position 0"}, [&] { forward(table, ids_of({-1})); });
}

TEST(Embedding, RejectsWrongArguments) {
  const Tensor table = random_tensor({7, 3}, DType::f32, 1), ids = ids_of({1, 2});
  Tensor y({2, 4}, DType::f32), flat({6}, DType::f32);
  expect_error<ShapeError>({"embedding", "table"}, [&] { embedding(flat, ids, y); });
  expect_error<DTypeError>({"embedding", "ids", "i32"}, [&] { embedding(table, Tensor({2}, DType::i64), y); });
  expect_error<ShapeError>({"embedding", "y", "[2, 4]"}, [&] { embedding(table, ids, y); });
  Tensor dtable({7, 3}, DType::f32);
  expect_error<ShapeError>({"embedding_backward", "dy"}, [&] { embedding_backward(ids, y, dtable, 0); });
  expect_error<ShapeError>({"embedding_backward", "dtable"}, [&] { embedding_backward(ids, y, flat, 0); });
}
