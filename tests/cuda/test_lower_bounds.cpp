#include "core/ops/lower_bounds.h"
#include "tests/cuda/twins.h"
#include "tests/support/composed.h"

using namespace mmfree;

namespace {

Tensor forward(const Tensor& lambda) {
  Tensor gamma = gpu_tensor(lambda.shape(), DType::f32);
  lower_bounds(to_gpu(lambda, DType::f32), gamma);
  return gamma;
}

}  // namespace

TEST(CudaLowerBounds, FollowsTheCpu) {
  MMFREE_NEEDS_GPU();
  for (int64_t d : {1, 7, 33, 1000, 1024})
    for (int64_t layers : {1, 2, 24}) {
      const Tensor lambda = random_of({layers, d}, DType::f32, 1, 2), dgamma = random_of({layers, d}, DType::f32, 2);
      const Tensor old = random_of({layers, d}, DType::f32, 3);
      EXPECT_LE(relative_error(from_gpu(forward(lambda)), composed::lower_bounds(lambda)), 1e-5) << layers << 'x' << d;
      for (double beta : {0.0, 1.0}) {
        Tensor expected = old.clone();
        lower_bounds_backward(lambda, dgamma, expected, beta);
        Tensor dlambda = to_gpu(beta == 0 ? full(old.shape(), DType::f32, kNaN) : old, DType::f32);
        lower_bounds_backward(to_gpu(lambda, DType::f32), to_gpu(dgamma, DType::f32), dlambda, beta);
        const Tensor got = from_gpu(dlambda);  // with one layer the gradient is exactly 0
        for (int64_t i = 0; i < got.size(); ++i) ASSERT_NEAR(at(expected, i), at(got, i), 2e-5) << layers << 'x' << d;
      }
    }
}

TEST(CudaLowerBounds, NaNSpreadsOverItsChannel) {
  MMFREE_NEEDS_GPU();
  for (int64_t layer : {0, 2}) {
    Tensor lambda = random_of({3, 4}, DType::f32, 1);
    set(lambda, layer * 4 + 1, kNaN);
    const Tensor gamma = from_gpu(forward(lambda));
    for (int64_t l = 1; l < 3; ++l)
      for (int64_t k = 0; k < 4; ++k) EXPECT_EQ(k == 1, std::isnan(at(gamma, l * 4 + k)));
  }
}
