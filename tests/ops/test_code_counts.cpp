#include <array>

#include "core/ops/code_counts.h"
#include "tests/support/tensors.h"

namespace mmfree {
namespace {

/// Weights -1, 0, 1 of which a third is zero, as a packed matrix.
TernaryTensor packed(const std::vector<int8_t>& weights, int64_t rows, int64_t cols) {
  TernaryTensor w = make_ternary(rows, cols, DType::f32);
  pack_ternary(weights.data(), rows, cols, w.codes.mut<uint8_t>());
  w.scale.mut<float>()[0] = 1;
  return w;
}

std::vector<int8_t> random_weights(int64_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int8_t> weights(static_cast<size_t>(n));
  for (int8_t& w : weights) w = int8_t(int(random() % 3) - 1);
  return weights;
}

std::array<int64_t, 3> counted(const TernaryTensor& w, Tensor& before) {
  Tensor counts = Tensor::zeros({3}, DType::i64);
  ternary_code_counts(w, before, counts);
  return {counts.data<int64_t>()[0], counts.data<int64_t>()[1], counts.data<int64_t>()[2]};
}

TEST(CodeCounts, AreThoseOfTheWeights) {
  for (const int64_t cols : kOddColumns)
    for (const int64_t rows : {1, 5, 200}) {
      SCOPED_TRACE(concat(rows, " x ", cols));
      std::vector<int8_t> old = random_weights(rows * cols, 3), now = random_weights(rows * cols, 4);
      for (int64_t k = 0; k < cols; ++k) now[size_t(k + (rows - 1) * cols)] = 0;  // the last row is dead
      std::array<int64_t, 3> expected{};
      for (size_t i = 0; i < now.size(); ++i) expected[0] += now[i] == 0, expected[1] += now[i] != old[i];
      for (int64_t o = 0; o < rows; ++o) {
        bool zeros = true;
        for (int64_t k = 0; k < cols; ++k) zeros &= now[size_t(o * cols + k)] == 0;
        expected[2] += zeros;
      }
      Tensor before = Tensor::zeros({rows, ternary_row_bytes(cols)}, DType::u8);
      counted(packed(old, rows, cols), before);
      EXPECT_EQ(expected, counted(packed(now, rows, cols), before));
      EXPECT_EQ(0, counted(packed(now, rows, cols), before)[1]) << "the codes are compared with those of the last call";
      EXPECT_EQ(expected[1], counted(packed(old, rows, cols), before)[1]);
    }
}

TEST(CodeCounts, AreAddedToWhatIsThereForAnyThreads) {
  const TernaryTensor w = packed(random_weights(333 * 70, 5), 333, 70);
  expect_same_bits_for_any_threads([&] {
    Tensor before = Tensor::zeros({333, ternary_row_bytes(70)}, DType::u8), counts = Tensor::zeros({3}, DType::i64);
    ternary_code_counts(w, before, counts);
    ternary_code_counts(w, before, counts);
    return std::vector<Tensor>{counts, before};
  });
  Tensor before = Tensor::zeros({333, ternary_row_bytes(70)}, DType::u8), counts = Tensor::zeros({3}, DType::i64);
  const int64_t zeros = counted(w, before)[0];
  ternary_code_counts(w, before, counts);
  ternary_code_counts(w, before, counts);
  EXPECT_EQ(2 * zeros, counts.data<int64_t>()[0]);
}

TEST(CodeCounts, OfRowsAreSumsOfSquaresAndCodesAtTheEnds) {
  for (const int64_t cols : {1, 33, 1000, 70000}) {
    SCOPED_TRACE(cols);
    constexpr int64_t kRows = 37;
    std::mt19937 random(7);
    Tensor q({kRows, cols}, DType::i8), counts({kRows, 2}, DType::i64);
    for (int64_t i = 0; i < q.size(); ++i) q.mut<int8_t>()[i] = int8_t(int(random() % 255) - 127);
    for (int64_t i = 0; i < cols; ++i) q.mut<int8_t>()[i] = i % 2 ? 127 : -127;  // the largest sum
    row_code_counts(q, counts);
    for (int64_t n = 0; n < kRows; ++n) {
      int64_t squares = 0, most = 0;
      for (int64_t k = 0; k < cols; ++k) {
        const int64_t code = q.data<int8_t>()[n * cols + k];
        squares += code * code, most += code == 127 || code == -127;
      }
      EXPECT_EQ(squares, counts.data<int64_t>()[2 * n]) << n;
      EXPECT_EQ(most, counts.data<int64_t>()[2 * n + 1]) << n;
    }
  }
}

TEST(CodeCounts, RefuseWhatDoesNotFit) {
  const TernaryTensor w = packed(random_weights(6, 1), 2, 3);
  Tensor before = Tensor::zeros({2, ternary_row_bytes(3)}, DType::u8), counts = Tensor::zeros({3}, DType::i64);
  Tensor narrow = Tensor::zeros({2, 3}, DType::u8), two = Tensor::zeros({2}, DType::i64), q({2, 3}, DType::i8),
         floats({2, 3}, DType::f32), pairs({2, 2}, DType::i64);
  expect_error<ShapeError>({"ternary_code_counts", "before"}, [&] { ternary_code_counts(w, narrow, counts); });
  expect_error<ShapeError>({"ternary_code_counts", "counts"}, [&] { ternary_code_counts(w, before, two); });
  expect_error<ShapeError>({"row_code_counts", "counts"}, [&] { row_code_counts(q, two); });
  expect_error<DTypeError>({"row_code_counts", "q must be i8"}, [&] { row_code_counts(floats, pairs); });
}

}  // namespace
}  // namespace mmfree
