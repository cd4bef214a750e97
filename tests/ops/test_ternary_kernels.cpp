#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "core/cpu/ternary_kernel.h"

using namespace mmfree::cpu;

namespace {

/// The sums of `tile` by the documented layout, column by column.
std::vector<int32_t> reference(const TernaryTile& t) {
  std::vector<int32_t> out;
  for (int64_t r = 0; r < t.rows; ++r)
    for (int64_t o = 0; o < t.outputs; ++o) {
      int64_t sum = 0;
      for (int64_t k = 0; k < t.blocks * 128; ++k) {
        const uint8_t byte = t.codes[o * t.blocks * 32 + k / 128 * 32 + k % 32];
        sum += int64_t(byte >> (k % 128 / 32 * 2) & 3) * t.q[r * t.blocks * 128 + k];
      }
      out.push_back(int32_t(sum));
    }
  return out;
}

/// Codes of `code` or, if it is negative, random ones of {0, 1, 2}; activations of `q` or random ones.
void check(const NamedTernaryKernel& kernel, int64_t rows, int64_t outputs, int64_t blocks, int code, int q) {
  std::mt19937 rng(uint32_t(rows + 100 * outputs + 10000 * blocks));
  std::vector<int8_t> activations(size_t(rows * blocks * 128));
  std::vector<uint8_t> codes(size_t(outputs * blocks * 32));
  for (int8_t& a : activations) a = q ? int8_t(q) : int8_t(int(rng() % 256) - 128);
  for (uint8_t& c : codes)
    for (int plane = 0; plane < 4; ++plane) c = uint8_t(c << 2 | (code < 0 ? rng() % 3 : unsigned(code)));
  const int64_t stride = (outputs + kTernaryOutputs - 1) / kTernaryOutputs * kTernaryOutputs;
  constexpr int32_t kGuard = 0x5a5a5a5a;
  std::vector<int32_t> out(size_t(rows * stride) + 8, kGuard);
  const TernaryTile tile{activations.data(), codes.data(), out.data(), rows, outputs, blocks, stride};
  kernel.kernel(tile);
  const std::vector<int32_t> expected = reference(tile);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t o = 0; o < outputs; ++o)
      ASSERT_EQ(expected[size_t(r * outputs + o)], out[size_t(r * stride + o)])
          << kernel.name << ": " << rows << " rows, " << outputs << " outputs, " << blocks << " blocks";
  for (size_t i = size_t(rows * stride); i < out.size(); ++i) ASSERT_EQ(kGuard, out[i]);
}

/// Codes and gradients with guards behind the output, for the kernels of the backward pass.
void check_transposed(const NamedTernaryKernel& kernel, int64_t rows, int64_t depth, int q) {
  std::mt19937 rng(uint32_t(rows + 100 * depth));
  const int64_t stride = (depth + 3) / 4 * 4, code_stride = 96;
  std::vector<int8_t> gradients(size_t(rows * stride));
  std::vector<uint8_t> codes(size_t(depth * code_stride) + 32);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t o = 0; o < depth; ++o)
      gradients[size_t(r * stride + o)] = q ? int8_t(q) : int8_t(int(rng() % 255) - 127);
  for (uint8_t& c : codes)
    for (int plane = 0; plane < 4; ++plane) c = uint8_t(c << 2 | (q ? 2u : rng() % 3));
  constexpr int32_t kGuard = 0x5a5a5a5a;
  std::vector<int32_t> expected(size_t(rows * 128) + 8, kGuard), out = expected;
  TransposedTile tile{gradients.data(), codes.data() + 32, expected.data(), rows, depth, stride, code_stride};
  transposed_tile_scalar(tile);
  tile.out = out.data();
  kernel.transposed(tile);
  ASSERT_EQ(expected, out) << kernel.name << ": " << rows << " rows, depth " << depth;
}

void check_gradient(const NamedTernaryKernel& kernel, int64_t rows, int64_t outputs, int64_t columns, int extreme) {
  std::mt19937 rng(uint32_t(rows + 100 * outputs + 10000 * columns));
  const int64_t groups = (outputs + kGradientGroup - 1) / kGradientGroup, x_stride = columns + 3,
                dw_stride = columns + 5;
  std::vector<int8_t> x(size_t(rows * x_stride));
  std::vector<int32_t> g(size_t(groups * 32 * kGradientGroup)), sums(static_cast<size_t>(outputs));
  std::vector<float> scale(static_cast<size_t>(outputs)), expected(size_t(outputs * dw_stride));
  for (int8_t& v : x) v = extreme ? int8_t(extreme) : int8_t(int(rng() % 256) - 128);
  for (int64_t o = 0; o < outputs; ++o) {
    scale[size_t(o)] = 1e-3f * float(1 + rng() % 100);
    for (int64_t n = 0; n < rows; ++n) {
      const int code = extreme ? 127 : int(rng() % 255) - 127;
      sums[size_t(o)] += code;
      g[size_t((o / 16 * 32 + n / 4) * 16 + o % 16)] |= int32_t(uint32_t(code & 255) << (8 * (n % 4)));
    }
  }
  for (float& v : expected) v = float(int(rng() % 1000)) * 0.37f;
  std::vector<float> out = expected;
  GradientBlock block{x.data(), g.data(), scale.data(), sums.data(), expected.data(),
                      rows,     outputs,  columns,      x_stride,    dw_stride};
  gradient_block_scalar(block);
  block.dw = out.data();
  kernel.gradient(block);
  ASSERT_EQ(expected, out) << kernel.name << ": " << rows << " rows, " << outputs << " outputs, " << columns
                           << " columns";
}

}  // namespace

TEST(TernaryKernels, TransposedOnesGiveTheSameSums) {
  for (const NamedTernaryKernel& kernel : ternary_kernels()) {
    if (!kernel.usable) continue;
    for (int64_t rows : {0, 1, 3, 4, 7, 128})
      for (int64_t depth : {0, 1, 2, 3, 4, 5, 255, 256, 257, 511, 512, 513, 1030})
        check_transposed(kernel, rows, depth, 0);
    for (int q : {127, -127}) check_transposed(kernel, 5, 2050, q);
  }
}

TEST(TernaryKernels, GradientOnesGiveTheSameBits) {
  for (const NamedTernaryKernel& kernel : ternary_kernels()) {
    if (!kernel.usable) continue;
    for (int64_t rows : {1, 2, 3, 4, 5, 127, 128})
      for (int64_t outputs : {1, 3, 4, 16, 17, 37})
        for (int64_t columns : {1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 128})
          check_gradient(kernel, rows, outputs, columns, 0);
    for (int extreme : {127, -127, -128}) check_gradient(kernel, 128, 20, 70, extreme);
  }
}

TEST(TernaryKernels, AllGiveTheSameSums) {
  for (const NamedTernaryKernel& kernel : ternary_kernels()) {
    if (!kernel.usable) continue;
    RecordProperty(kernel.name, "tested");
    for (int64_t rows : {0, 1, 2, 3, 4, 5, 7, 8, 11, 12, 19})
      for (int64_t outputs : {0, 1, 2, 3, 4, 5, 33})
        for (int64_t blocks : {0, 1, 2, 15, 16, 17, 33, 66}) check(kernel, rows, outputs, blocks, -1, 0);
  }
}

TEST(TernaryKernels, SurviveTheLargestSums) {
  for (const NamedTernaryKernel& kernel : ternary_kernels())
    if (kernel.usable)
      for (int code : {0, 2})
        for (int q : {127, -127, -128})
          for (int64_t blocks : {15, 16, 17, 32, 157})
            for (int64_t rows : {5, 14}) check(kernel, rows, 5, blocks, code, q);
}

TEST(TernaryKernels, TheScalarOneIsAlwaysThere) {
  EXPECT_STREQ("scalar", ternary_kernels()[kTernaryKernels - 1].name);
  EXPECT_TRUE(ternary_kernels()[kTernaryKernels - 1].usable);
}
