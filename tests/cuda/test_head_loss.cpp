#include "core/ops/head_loss.h"
#include "tests/cuda/transfer.h"
#include "tests/support/composed.h"

#if MMFREE_CUDA

using namespace mmfree;

namespace {

/// logits (replaced by their gradients) and nll, on the CPU.
struct Result {
  Tensor logits, nll;
};

Result softmax_nll_on_gpu(const Tensor& logits, const Tensor& targets, DType type, double scale, bool gradient) {
  Tensor x = to_gpu(logits, type), nll = empty_on_gpu({logits.dim(0)}, DType::f32);
  const Tensor there = to_gpu(targets), factor = to_gpu(full({1}, DType::f64, scale));
  cuda::softmax_nll({x.raw_mut(), there.data<int32_t>(), nll.raw_mut(), logits.dim(0), logits.dim(1),
                     factor.data<double>(), gradient, type});
  return {from_gpu(x), from_gpu(nll)};
}

/// Ids of v, some positions ignored.
Tensor make_targets(int64_t n, int64_t v) {
  Tensor targets = random_ids(n, v, uint32_t(v));
  for (int64_t i = 2; i < n; i += 4) targets.mut<int32_t>()[i] = kIgnoreTarget;
  targets.mut<int32_t>()[0] = int32_t(v - 1);
  return targets;
}

// Odd and even, shorter and longer than what a block holds in registers.
constexpr int64_t kVocabularies[] = {1, 2, 7, 8, 33, 1000, 4095, 4096, 16384, 16392, 32000, 32768, 50257, 70000};

}  // namespace

TEST(CudaHeadLoss, SoftmaxMatchesItsComposedTwin) {
  MMFREE_NEEDS_GPU();
  const int64_t n = 7;
  const double scale = 0.25;
  for (DType type : kActivations)
    for (int64_t v : kVocabularies) {
      SCOPED_TRACE(concat(name_of(type), " V ", v));
      const Tensor logits = rounded_tensor({n, v}, type, 1, 3), targets = make_targets(n, v);
      const composed::CrossEntropy expected = composed::cross_entropy(logits, targets, scale);
      const Result got = softmax_nll_on_gpu(logits, targets, type, scale, true);
      // Numbers up to 20 in f32, a sum of terms of relative error 1e-6 by the fast exponential.
      for (int64_t i = 0; i < n; ++i) ASSERT_NEAR(at(expected.nll, i), at(got.nll, i), 2e-5) << i;
      const double relative = type == DType::bf16 ? 1.01 * kBf16Rounding : 2e-5;
      for (int64_t i = 0; i < n * v; ++i) {
        const double e = at(expected.dlogits, i);
        // Where the one-hot nearly cancels the softmax, the errors of the two remain.
        ASSERT_NEAR(e, at(got.logits, i), relative * std::abs(e) + 4e-6 * scale) << i;
      }
    }
}

TEST(CudaHeadLoss, SoftmaxAloneLeavesTheLogitsAndGivesTheSameLoss) {
  MMFREE_NEEDS_GPU();
  for (DType type : kActivations)
    for (int64_t v : {33, 32000, 50257}) {
      const Tensor logits = rounded_tensor({5, v}, type, 2, 3), targets = make_targets(5, v);
      const Result alone = softmax_nll_on_gpu(logits, targets, type, 1, false);
      EXPECT_TRUE(same_bits(logits, alone.logits));
      EXPECT_TRUE(same_bits(softmax_nll_on_gpu(logits, targets, type, 1, true).nll, alone.nll));
    }
}

TEST(CudaHeadLoss, LargeLogitsDoNotOverflow) {
  MMFREE_NEEDS_GPU();
  for (DType type : kActivations) {
    const Tensor logits = rounded_tensor({4, 100}, type, 3, 1, 1000), targets = make_targets(4, 100);
    const Tensor expected = composed::cross_entropy(logits, targets, 1).nll;
    // One rounding of log(sum) + 1000 in f32 is 6e-5 at most.
    const Tensor nll = softmax_nll_on_gpu(logits, targets, type, 1, true).nll;
    for (int64_t i = 0; i < 4; ++i) EXPECT_NEAR(at(expected, i), at(nll, i), 2e-4);
  }
}

TEST(CudaHeadLoss, BadNumbersAndTargetsBecomeNaNInTheirRowAlone) {
  MMFREE_NEEDS_GPU();
  for (DType type : kActivations)
    for (int64_t v : {33, 64, 40000}) {
      Tensor logits = rounded_tensor({6, v}, type, 4), targets = random_ids(6, v, 5);
      set(logits, 1 * v + v - 2, kNaN);
      set(logits, 2 * v + 5, kInfinity);
      targets.mut<int32_t>()[3] = int32_t(v);
      targets.mut<int32_t>()[4] = -1;
      const Result got = softmax_nll_on_gpu(logits, targets, type, 1, true);
      for (int64_t i = 0; i < 6; ++i) {
        const bool bad = i >= 1 && i <= 4;
        EXPECT_EQ(bad, std::isnan(at(got.nll, i))) << i;
        int64_t good = 0;
        for (int64_t k = 0; k < v; ++k) good += std::isfinite(at(got.logits, i * v + k));
        if (i == 2)
          EXPECT_LT(good, v);
        else
          EXPECT_EQ(bad ? 0 : v, good) << i;
      }
    }
}

TEST(CudaHeadLoss, TwoRunsGiveTheSameBits) {
  MMFREE_NEEDS_GPU();
  const Tensor logits = rounded_tensor({64, 32000}, DType::bf16, 6, 3), targets = make_targets(64, 32000);
  const Result one = softmax_nll_on_gpu(logits, targets, DType::bf16, 0.1, true);
  const Result two = softmax_nll_on_gpu(logits, targets, DType::bf16, 0.1, true);
  EXPECT_TRUE(same_bits(one.logits, two.logits) && same_bits(one.nll, two.nll));
}

#endif
