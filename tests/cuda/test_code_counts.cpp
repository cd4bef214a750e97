#include "core/ops/code_counts.h"
#include "tests/cuda/transfer.h"

using namespace mmfree;

namespace {

TernaryTensor random_matrix(int64_t rows, int64_t cols, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int8_t> weights(static_cast<size_t>(rows * cols));
  for (int8_t& w : weights) w = int8_t(int(random() % 3) - 1);
  for (int64_t k = 0; k < cols; ++k) weights[size_t(k)] = 0;
  TernaryTensor w = make_ternary(rows, cols, DType::f32);
  pack_ternary(weights.data(), rows, cols, w.codes.mut<uint8_t>());
  w.scale.mut<float>()[0] = 1;
  return w;
}

}  // namespace

TEST(CudaCodeCounts, OfMatricesAreThoseOfTheCpu) {
  MMFREE_NEEDS_GPU();
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 1}, {7, 33}, {8, 128}, {100, 1000}, {513, 2816}}) {
    SCOPED_TRACE(concat(rows, " x ", cols));
    Tensor before = Tensor::zeros({rows, ternary_row_bytes(cols)}, DType::u8), counts = Tensor::zeros({3}, DType::i64);
    Tensor gpu_before = to_gpu(before), gpu_counts = to_gpu(counts);
    for (const uint32_t seed : {1u, 2u, 2u}) {
      const TernaryTensor w = random_matrix(rows, cols, seed);
      ternary_code_counts(w, before, counts);
      ternary_code_counts(to_device(w, Device::cuda), gpu_before, gpu_counts);
      EXPECT_TRUE(same_bits(counts, from_gpu(gpu_counts))) << seed;
      EXPECT_TRUE(same_bits(before, from_gpu(gpu_before))) << seed;
    }
  }
}

TEST(CudaCodeCounts, OfRowsAreThoseOfTheCpu) {
  MMFREE_NEEDS_GPU();
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 1}, {9, 33}, {2048, 1024}, {3, 70000}}) {
    SCOPED_TRACE(concat(rows, " x ", cols));
    std::mt19937 random(3);
    Tensor q({rows, cols}, DType::i8), counts({rows, 2}, DType::i64);
    for (int64_t i = 0; i < q.size(); ++i) q.mut<int8_t>()[i] = int8_t(int(random() % 255) - 127);
    for (int64_t i = 0; i < cols; ++i) q.mut<int8_t>()[i] = -127;
    row_code_counts(q, counts);
    Tensor got = empty_on_gpu({rows, 2}, DType::i64);
    row_code_counts(to_gpu(q), got);
    EXPECT_TRUE(same_bits(counts, from_gpu(got)));
  }
}
