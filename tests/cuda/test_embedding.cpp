#include "core/ops/embedding.h"
#include "tests/cuda/transfer.h"

using namespace mmfree;

namespace {

constexpr int64_t kWidths[] = {1, 3, 33, 64, 1000, 1028, 2052};

/// Whole numbers: their sums are exact in any order, so that both sides must give the same bits.
Tensor whole_numbers(Shape shape, uint32_t seed) {
  std::mt19937 rng(seed);
  Tensor t(shape, DType::f32);
  for (int64_t i = 0; i < t.size(); ++i) set(t, i, double(int(rng() % 17)) - 8);
  return t;
}

Tensor backward_on_gpu(const Tensor& ids, const Tensor& dy, DType type, const Tensor& table, double beta) {
  Tensor dtable = to_gpu(table);
  embedding_backward(to_gpu(ids), to_gpu(dy, type), dtable, beta);
  return from_gpu(dtable);
}

}  // namespace

TEST(CudaEmbedding, CopiesRowsAndMarksUnknownIds) {
  MMFREE_NEEDS_GPU();
  for (int64_t d : kWidths)
    for (int64_t n : {1, 9, 130}) {
      const Tensor table = random_tensor({37, d}, DType::f32, 1);
      Tensor ids = random_ids(n, 37, 2), y = empty_on_gpu({n, d}, DType::f32), expected({n, d}, DType::f32);
      embedding(table, ids, expected);
      embedding(to_gpu(table), to_gpu(ids), y);
      ASSERT_TRUE(same_bits(expected, from_gpu(y))) << n << 'x' << d;
      ids.mut<int32_t>()[0] = -1;
      ids.mut<int32_t>()[n - 1] = 37;
      embedding(to_gpu(table), to_gpu(ids), y);
      const Tensor marked = from_gpu(y);
      for (int64_t i = 0; i < marked.size(); ++i)
        ASSERT_EQ(i / d == 0 || i / d == n - 1, std::isnan(at(marked, i))) << i;
    }
}

TEST(CudaEmbedding, BackwardSumsEveryOccurrenceOnce) {
  MMFREE_NEEDS_GPU();
  for (DType type : kActivations)
    for (int64_t d : kWidths)
      for (int64_t n : {1, 31, 32, 33, 200, 1500})
        for (int64_t v : {1, 5, 300}) {
          Tensor ids = random_ids(n, v, uint32_t(n + v));
          for (int64_t i = 0; i < n; i += 7) ids.mut<int32_t>()[i] = int32_t(v / 2);  // one id far more often
          if (n > 100)
            ids.mut<int32_t>()[3] = -5, ids.mut<int32_t>()[50] = int32_t(v), ids.mut<int32_t>()[51] = 1 << 30;
          const Tensor dy = whole_numbers({n, d}, 3);
          for (double beta : {0.0, 1.0, -0.5}) {
            const Tensor old = beta == 0 ? full({v, d}, DType::f32, kNaN) : whole_numbers({v, d}, 4);
            Tensor expected = old.clone();
            embedding_backward(ids, dy, expected, beta);
            const Tensor got = backward_on_gpu(ids, dy, type, old, beta);
            ASSERT_EQ(0, relative_error(got, expected)) << name_of(type) << ' ' << n << " ids of " << v << " x " << d;
          }
        }
}

TEST(CudaEmbedding, BackwardFollowsDoubleAndTwoRunsGiveTheSameBits) {
  MMFREE_NEEDS_GPU();
  const int64_t n = 5000, v = 700, d = 132;
  Tensor ids = random_ids(n, v, 1);
  for (int64_t i = 0; i < n; i += 3) ids.mut<int32_t>()[i] = 11;
  for (DType type : kActivations) {
    const Tensor dy = rounded_tensor({n, d}, type, 2), none = full({v, d}, DType::f32, 0);
    Tensor expected({v, d}, DType::f64);
    embedding_backward(ids, as_type(dy, DType::f64), expected, 0);
    const Tensor one = backward_on_gpu(ids, dy, type, none, 0), two = backward_on_gpu(ids, dy, type, none, 0);
    // Sums in f32 of at most 32 terms, then of the 1,700 / 32 parts: fewer than 100 roundings on the longest way.
    EXPECT_LE(relative_error(one, expected), 100 * epsilon_of(DType::f32));
    EXPECT_TRUE(same_bits(one, two));
  }
}

TEST(CudaEmbedding, BackwardCarriesNaNToItsRowAlone) {
  MMFREE_NEEDS_GPU();
  const Tensor ids = random_ids(300, 10, 1);
  Tensor dy = rounded_tensor({300, 8}, DType::bf16, 2);
  set(dy, 40 * 8 + 3, kNaN);
  const Tensor got = backward_on_gpu(ids, dy, DType::bf16, full({10, 8}, DType::f32, 0), 0);
  for (int64_t i = 0; i < got.size(); ++i) EXPECT_EQ(i == ids.data<int32_t>()[40] * 8 + 3, std::isnan(at(got, i))) << i;
}
