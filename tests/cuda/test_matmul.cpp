// Products of cuBLASLt whose K is long beside M and N, which it may split: the sums have to stay in f32.
#include <array>
#include <random>

#include "core/ops/matmul.h"
#include "tests/cuda/transfer.h"

namespace mmfree {
namespace {

/// Integers from -7 to 7, whose products and sums are exact in f32. In the second half of K they have the other sign,
/// so that a sum is far smaller than its halves and does not survive if a half is rounded to bf16.
Tensor long_rows(int64_t rows, int64_t k, uint32_t seed, bool cancel) {
  std::mt19937 rng(seed);
  Tensor t({rows, k}, DType::f32);
  for (int64_t i = 0; i < t.size(); ++i) {
    const float magnitude = float(rng() % 8);
    t.mut<float>()[i] = cancel && i % k >= k / 2 ? -magnitude : magnitude;
  }
  return t;
}

Tensor transposed(const Tensor& t) {
  Tensor out({t.dim(1), t.dim(0)}, DType::f32);
  for (int64_t i = 0; i < t.dim(0); ++i)
    for (int64_t j = 0; j < t.dim(1); ++j) out.mut<float>()[j * t.dim(0) + i] = t.data<float>()[i * t.dim(1) + j];
  return out;
}

TEST(CudaMatmul, RoundsOnceHoweverLongTheSum) {
  MMFREE_NEEDS_GPU();
  for (const auto& [m, n, k] :
       {std::array<int64_t, 3>{8, 16, 16384}, {64, 64, 16384}, {16, 1024, 8192}, {512, 128, 8192}, {128, 8, 16000}}) {
    const Tensor a = long_rows(m, k, 1, false), b = long_rows(n, k, 2, true);
    Tensor exact({m, n}, DType::f32);  // integers below 2^24
    matmul(a, false, b, true, exact);
    const Tensor scale = full({1}, DType::f32, 1).to(Device::cuda);
    for (int flags = 0; flags < 4; ++flags)
      for (DType type : {DType::bf16, DType::f32})
        for (const Tensor& factor : {Tensor(), scale}) {
          Tensor c = empty_on_gpu({m, n}, type);
          matmul(to_gpu(flags & 1 ? transposed(a) : a, DType::bf16), flags & 1,
                 to_gpu(flags & 2 ? b : transposed(b), DType::bf16), flags & 2, c, 1, 0, factor);
          EXPECT_TRUE(same_bits(as_type(exact, type), c.to(Device::cpu)))
              << m << " x " << n << " x " << k << " to " << name_of(type) << ", transposed: " << flags;
        }
  }
}

}  // namespace
}  // namespace mmfree
