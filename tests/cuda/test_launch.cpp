// Launches that overlap (core/cuda/launch.cuh): kernels that read what the kernel before wrote, and write what it read.
#include "core/ops/elementwise.h"
#include "core/ops/matmul.h"
#include "tests/cuda/transfer.h"

using namespace mmfree;

namespace {

constexpr int kRounds = 40;
constexpr int64_t kSide = 64;

/// Tensors of a chain of kernels. Round i writes i into x and a, adds x to y, multiplies a by itself, and writes other
/// numbers over x and a at once. All numbers are small integers, so every sum is exact.
struct Chain {
  Tensor x, y, a, p, sums, products;

  explicit Chain(int64_t n)
      : x({n}, DType::f32, Device::cuda),
        y({n}, DType::f32, Device::cuda),
        a({kSide, kSide}, DType::f32, Device::cuda),
        p({kSide, kSide}, DType::f32, Device::cuda),
        sums({kRounds}, DType::f64, Device::cuda),
        products({kRounds}, DType::f64, Device::cuda) {}

  void run() {
    fill(y, 0);
    for (int i = 0; i < kRounds; ++i) {
      Tensor sum_of_y = sums.slice(i, i + 1), sum_of_p = products.slice(i, i + 1);
      fill(x, i);
      add(y, x, y);
      fill(x, -1000);
      sum(y, 1, sum_of_y);
      fill(a, i);
      matmul(a, false, a, false, p, 1, 0);
      fill(a, -1000);
      sum(p, 1, sum_of_p);
    }
  }

  void check() const {
    const Tensor of_y = sums.to(Device::cpu), of_p = products.to(Device::cpu);
    for (int i = 0; i < kRounds; ++i) {
      EXPECT_EQ(of_y.data<double>()[i], double(x.size()) * i * (i + 1) / 2) << i;
      EXPECT_EQ(of_p.data<double>()[i], double(kSide * kSide * kSide) * i * i) << i;
    }
  }
};

}  // namespace

TEST(CudaLaunch, OverlappingKernelsSeeWhatCameBefore) {
  MMFREE_NEEDS_GPU();
  // One block, some, and several waves of blocks.
  for (int64_t n : {int64_t(1000), int64_t(300000), int64_t(1) << 24}) {
    Chain chain(n);
    chain.run();
    chain.check();
    gpu::Graph graph([&] { chain.run(); });
    for (int launch = 0; launch < 3; ++launch) {
      chain.sums.fill_zero();
      chain.products.fill_zero();
      graph.launch();
      chain.check();
    }
  }
}
