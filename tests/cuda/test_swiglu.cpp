#include "core/ops/swiglu.h"
#include "tests/cuda/twins.h"
#include "tests/support/composed.h"

using namespace mmfree;

namespace {

Tensor forward(const Tensor& x, DType t) {
  Tensor y = gpu_tensor({x.dim(0), x.dim(1) / 2}, t);
  swiglu(to_gpu(x, t), y);
  return y;
}

Tensor backward(const Tensor& x, const Tensor& dy, DType t) {
  Tensor dx = gpu_tensor(x.shape(), t);
  swiglu_backward(to_gpu(x, t), to_gpu(dy, t), dx);
  return dx;
}

}  // namespace

TEST(CudaSwiglu, FollowsTheCpu) {
  MMFREE_NEEDS_GPU();
  for (DType t : {DType::f32, DType::bf16})
    for (int64_t inner : {1, 7, 33, 100, 256, 1000, 2816, 6912})
      for (int64_t n : {0, 1, 3, 130}) {
        if (n == 130 && inner > 1000) continue;
        const Tensor x = random_of({n, 2 * inner}, t, 1, 3), dy = random_of({n, inner}, t, 2);
        Tensor dx(x.shape(), DType::f64);
        swiglu_backward(x, dy, dx);
        EXPECT_LE(relative_error(from_gpu(forward(x, t)), composed::swiglu(x)), gpu_bound(t)) << n << 'x' << inner;
        EXPECT_LE(relative_error(from_gpu(backward(x, dy, t)), dx), gpu_bound(t)) << n << 'x' << inner;
      }
}

TEST(CudaSwiglu, SaturatesWithoutOverflow) {
  MMFREE_NEEDS_GPU();
  for (DType t : {DType::f32, DType::bf16})
    for (double gate : {-1e4, -200.0, -90.0, 90.0, 200.0, 1e4}) {
      Tensor x({1, 2}, DType::f64);
      set(x, 0, gate), set(x, 1, 2);
      EXPECT_NEAR(gate > 0 ? 2 * gate : 0, at(from_gpu(forward(x, t)), 0), std::abs(gate) * gpu_bound(t)) << gate;
      EXPECT_EQ(0, count_non_finite(from_gpu(backward(x, full({1, 1}, DType::f64, 1), t)))) << gate;
    }
}

TEST(CudaSwiglu, NaNReachesTheOutput) {
  MMFREE_NEEDS_GPU();
  for (DType t : {DType::f32, DType::bf16})
    for (int64_t column : {4, 33 + 4}) {
      Tensor x = random_of({2, 66}, t, 1);
      set(x, 66 + column, kNaN);
      const Tensor y = from_gpu(forward(x, t));
      EXPECT_EQ(1, count_non_finite(y));
      EXPECT_TRUE(std::isnan(at(y, 33 + 4)));
    }
}
