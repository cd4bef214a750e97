// Eight-bit backward products on a GPU, against the CPU's kernels and plain formulas, to the bit.
#include <algorithm>

#include "core/ops/ternary_int8.h"
#include "core/quantize.h"
#include "tests/cuda/transfer.h"

namespace mmfree {
namespace {

/// Gradients that `type` holds; every third row is far smaller, one is zero.
Tensor gradients(int64_t n, int64_t o, DType type, uint32_t seed) {
  Tensor dy = rounded_tensor({n, o}, type, seed, 1e-3);
  for (int64_t i = 0; i < n * o; ++i) {
    if (i / o % 3 == 1) set(dy, i, at(dy, i) * 0x1p-20);
    if (i / o % 7 == 5) set(dy, i, 0);
  }
  return dy;
}

TernaryTensor random_weights(int64_t o, int64_t k) {
  TernaryTensor w = make_ternary(o, k, DType::f32);
  ternary_quantise(random_tensor({o, k}, DType::f32, uint32_t(o + 3 * k), 0.05), w);
  return w;
}

QuantTensor rows_of(const Tensor& dy) {
  QuantTensor rows = make_gradient_rows(dy.rows(), dy.cols(), dy.dtype(), dy.device());
  gradient_rows(dy, rows);
  return rows;
}

void expect_rows_of_the_cpu(const Tensor& dy) {
  const QuantTensor expected = rows_of(dy);
  for (DType type : kActivations) {
    if (type == DType::bf16 && !same_bits(as_type(as_type(dy, DType::bf16), DType::f32), dy)) continue;
    const QuantTensor got = rows_of(to_gpu(dy, type));
    EXPECT_EQ(type, got.compute);
    ASSERT_TRUE(same_bits(expected.scale, from_gpu(got.scale))) << name_of(type) << ' ' << dy.describe();
    ASSERT_TRUE(same_bits(expected.values, from_gpu(got.values))) << name_of(type) << ' ' << dy.describe();
  }
}

/// beta · old + value in `type`, by the formula.
Tensor added(const Tensor& value, const Tensor& old, float beta, DType type) {
  Tensor sum = as_type(as_type(value, type), DType::f32).clone();
  for (int64_t i = 0; beta != 0 && i < sum.size(); ++i) sum.mut<float>()[i] += beta * old.data<float>()[i];
  return as_type(sum, type);
}

void expect_dx_of_the_cpu(int64_t n, int64_t o, int64_t k) {
  SCOPED_TRACE(concat(n, 'x', o, 'x', k));
  const Tensor dy = gradients(n, o, DType::bf16, uint32_t(n + o));
  const TernaryTensor w = random_weights(o, k), there = to_device(w, Device::cuda);
  Tensor expected({n, k}, DType::f32);
  ternary_dx_int8(dy, w, expected, 0);
  const Tensor old = rounded_tensor({n, k}, DType::bf16, 7, 1e-3);
  for (DType type : kActivations)
    for (float beta : {0.0f, 1.0f, -0.5f})
      for (bool made : {false, true}) {
        const Tensor dy_there = to_gpu(dy, type);
        Tensor dx = to_gpu(beta == 0 ? full({n, k}, DType::f32, kNaN) : old, type);
        ternary_dx_int8(made ? Gradient(Tensor(), rows_of(dy_there)) : Gradient(dy_there), there, dx, beta);
        ASSERT_TRUE(same_bits(added(expected, old, beta, type), dx.to(Device::cpu)))
            << name_of(type) << " beta " << beta << (made ? " of rows" : " of values");
      }
}

/// Operands of a weight's gradient: rows of dy, codes and steps of x.
struct WeightProblem {
  QuantTensor rows;
  Tensor q, step;
  int64_t n, o, k;
};

WeightProblem weight_problem(int64_t n, int64_t o, int64_t k) {
  WeightProblem p{rows_of(gradients(n, o, DType::bf16, uint32_t(n + o))),
                  Tensor({n, k}, DType::i8),
                  Tensor({n}, DType::f32),
                  n,
                  o,
                  k};
  std::mt19937 rng(uint32_t(n + k));
  for (int64_t i = 0; i < n * k; ++i) p.q.mut<int8_t>()[i] = i % k == 3 ? 0 : int8_t(int(rng() % 255) - 127);
  for (int64_t i = 0; i < n; ++i) set(p.step, i, 0.01 + 0.001 * double(i % 17));
  return p;
}

/// What a GPU computes by the formula, without beta·dw: the sums of the parts.
std::vector<Tensor> parts_of(const WeightProblem& p) {
  const int64_t blocks = (p.n + kActivationBlock - 1) / kActivationBlock, parts = activation_parts(p.o, p.k, p.n);
  const int8_t *q = p.q.data<int8_t>(), *c = p.rows.values.data<int8_t>();
  const float *step = p.step.data<float>(), *row_step = p.rows.scale.data<float>();
  std::vector<Tensor> out;
  for (int64_t part = 0; part < parts; ++part) {
    Tensor dw = Tensor::zeros({p.o, p.k}, DType::f32);
    for (int64_t b = blocks * part / parts; b < blocks * (part + 1) / parts; ++b) {
      const int64_t begin = b * kActivationBlock, end = std::min(p.n, begin + kActivationBlock);
      for (int64_t k = 0; k < p.k; ++k) {
        std::vector<int32_t> d;
        float most = 0;
        for (int64_t n = begin; n < end; ++n)
          most = std::max(most, std::abs(float(q[n * p.k + k]) * (step[n] * row_step[n])));
        const auto scale = gradient_scale(most);
        for (int64_t n = begin; n < end; ++n)
          d.push_back(int32_t(std::nearbyint(float(q[n * p.k + k]) * (step[n] * row_step[n]) * scale.inverse)));
        std::vector<int32_t> sums(size_t(p.o), 0);
        for (int64_t n = begin; n < end; ++n)
          for (int64_t o = 0; o < p.o; ++o) sums[size_t(o)] += c[n * p.o + o] * d[size_t(n - begin)];
        for (int64_t o = 0; o < p.o; ++o) {
          float& to = dw.mut<float>()[o * p.k + k];
          to = std::fma(float(sums[size_t(o)]), scale.step, to);
        }
      }
    }
    out.push_back(dw);
  }
  return out;
}

void expect_dw_of_the_formula(int64_t n, int64_t o, int64_t k) {
  SCOPED_TRACE(concat(n, 'x', o, 'x', k, " in ", activation_parts(o, k, n), " parts"));
  const WeightProblem p = weight_problem(n, o, k);
  const std::vector<Tensor> parts = parts_of(p);
  const QuantTensor rows(to_gpu(p.rows.values), to_gpu(p.rows.scale), DType::bf16);
  const Tensor q = to_gpu(p.q), step = to_gpu(p.step), old = random_tensor({o, k}, DType::f32, 5, 1e-3);
  for (float beta : {0.0f, 1.0f, -0.5f}) {
    Tensor dw = to_gpu(beta == 0 ? full({o, k}, DType::f32, kNaN) : old), expected = parts[0].clone();
    for (int64_t i = 0; beta != 0 && i < o * k; ++i)
      expected.mut<float>()[i] = beta * old.data<float>()[i] + parts[0].data<float>()[i];
    for (size_t part = 1; part < parts.size(); ++part)
      for (int64_t i = 0; i < o * k; ++i) expected.mut<float>()[i] += parts[part].data<float>()[i];
    ternary_dw_int8(Gradient(Tensor(), rows), q, step, dw, beta);
    ASSERT_TRUE(same_bits(expected, dw.to(Device::cpu))) << "beta " << beta;
  }
}

}  // namespace

TEST(CudaTernaryInt8, RowsHaveTheBitsOfTheCpu) {
  MMFREE_NEEDS_GPU();
  for (DType type : kActivations)
    for (int64_t n : {1, 3, 140})
      for (int64_t o : {1, 7, 8, 33, 256, 1000, 1408, 4096, 5632, 11264, 12288, 12296, 12289})
        expect_rows_of_the_cpu(gradients(n, o, type, uint32_t(n + o)));
  expect_rows_of_the_cpu(gradients(5000, 64, DType::bf16, 3));
  const Tensor shifted = gradients(1, 8 * 64 + 8, DType::f32, 4);
  Tensor there = to_gpu(shifted).reshape({8 * 64 + 8}).slice(1, 8 * 64 + 1).reshape({8, 64});
  const Tensor here = shifted.reshape({8 * 64 + 8}).slice(1, 8 * 64 + 1).reshape({8, 64}).clone();
  EXPECT_TRUE(same_bits(rows_of(here).values, from_gpu(rows_of(there).values)));
}

TEST(CudaTernaryInt8, RowsOfTinyGradientsAndZerosHaveTheBitsOfTheCpu) {
  MMFREE_NEEDS_GPU();
  for (double size : {1e-12, 1e-25, 1e-29, 1e-31, 1e-37, 0.0})
    for (DType type : kActivations) expect_rows_of_the_cpu(rounded_tensor({5, 72}, type, 3, size));
}

TEST(CudaTernaryInt8, DxHasTheBitsOfTheCpu) {
  MMFREE_NEEDS_GPU();
  // What the tensor cores do not take: odd sizes.
  for (int64_t n : {1, 9, 130})
    for (int64_t o : {1, 17, 40})
      for (int64_t k : {1, 33, 260}) expect_dx_of_the_cpu(n, o, k);
  // What they take; k a multiple of 32 and not, o below, at and behind steps of 128, sizes across tiles.
  for (int64_t n : {1, 128, 300})
    for (int64_t o : {16, 128, 144, 512})
      for (int64_t k : {8, 32, 264, 512}) expect_dx_of_the_cpu(n, o, k);
  expect_dx_of_the_cpu(700, 1408, 512);
  expect_dx_of_the_cpu(2500, 1024, 1032);
}

TEST(CudaTernaryInt8, DwHasTheBitsOfTheFormula) {
  MMFREE_NEEDS_GPU();
  // What the tensor cores do not take, then what they take: sizes below, at and behind those of tiles and blocks.
  for (int64_t n : {1, 130, 300}) expect_dw_of_the_formula(n, 17, 9);
  expect_dw_of_the_formula(700, 33, 40);
  expect_dw_of_the_formula(700, 48, 30);
  for (int64_t n : {1, 128, 256, 300, 513})
    for (int64_t o : {16, 128, 272})
      for (int64_t k : {4, 36, 128, 260}) expect_dw_of_the_formula(n, o, k);
  expect_dw_of_the_formula(2000, 640, 128);
  expect_dw_of_the_formula(5000, 528, 300);
}

TEST(CudaTernaryInt8, DwOfMoreTilesThanClusters) {
  MMFREE_NEEDS_GPU();
  expect_dw_of_the_formula(600, 2816, 2048);  // 88 tiles
}

TEST(CudaTernaryInt8, DwWithoutRowsIsWhatWasThere) {
  MMFREE_NEEDS_GPU();
  const WeightProblem p = weight_problem(0, 32, 16);
  Tensor dw = to_gpu(full({32, 16}, DType::f32, 3));
  const QuantTensor rows(to_gpu(p.rows.values), to_gpu(p.rows.scale), DType::bf16);
  ternary_dw_int8(Gradient(Tensor(), rows), to_gpu(p.q), to_gpu(p.step), dw, 0.5);
  EXPECT_TRUE(same_bits(full({32, 16}, DType::f32, 1.5), dw.to(Device::cpu)));
}

TEST(CudaTernaryInt8, DwShowsWhatIsNotFinite) {
  MMFREE_NEEDS_GPU();
  for (int64_t o : {20, 64})
    for (double bad : {kNaN, kInfinity})
      for (bool in_x : {false, true}) {
        WeightProblem p = weight_problem(600, o, 40);
        set(in_x ? p.step : p.rows.scale, 300, bad);
        const QuantTensor rows(to_gpu(p.rows.values), to_gpu(p.rows.scale), DType::bf16);
        Tensor dw = empty_on_gpu({o, 40}, DType::f32);
        ternary_dw_int8(Gradient(Tensor(), rows), to_gpu(p.q), to_gpu(p.step), dw, 0);
        EXPECT_EQ(o * 40, count_non_finite(from_gpu(dw))) << o << ' ' << bad;
      }
}

TEST(CudaTernaryInt8, ShowsWhatIsNotFinite) {
  MMFREE_NEEDS_GPU();
  for (double bad : {kNaN, kInfinity, -kInfinity})
    for (int64_t row : {0, 1, 130})
      for (int64_t o : {20, 64})
        for (DType type : kActivations) {
          Tensor dy = gradients(140, o, DType::bf16, 1);
          set(dy, row * o + 3, bad);
          Tensor dx = empty_on_gpu({140, 40}, type);
          ternary_dx_int8(to_gpu(dy, type), to_device(random_weights(o, 40), Device::cuda), dx, 0);
          const Tensor got = from_gpu(dx);
          for (int64_t n = 0; n < 140; ++n)
            EXPECT_EQ(n == row ? 40 : 0, count_non_finite(got.slice(n, n + 1))) << n << ' ' << name_of(type);
        }
}

TEST(CudaTernaryInt8, GivesTheSameBitsTwiceAndWhenRecorded) {
  MMFREE_NEEDS_GPU();
  const TernaryTensor w = to_device(random_weights(512, 256), Device::cuda);
  Tensor dy = to_gpu(gradients(1000, 512, DType::bf16, 1), DType::bf16);
  Tensor dx = empty_on_gpu({1000, 256}, DType::bf16), again = dx.clone();
  ternary_dx_int8(dy, w, dx, 0);
  gpu::Graph graph([&] { ternary_dx_int8(dy, w, again, 0); });
  for (uint32_t seed : {1, 2}) {
    dy.copy_from(to_gpu(gradients(1000, 512, DType::bf16, seed), DType::bf16));
    ternary_dx_int8(dy, w, dx, 0);
    graph.launch();
    EXPECT_TRUE(same_bits(dx.to(Device::cpu), again.to(Device::cpu)));
  }
}

TEST(CudaTernaryInt8, RefusesRowsThatDoNotFit) {
  MMFREE_NEEDS_GPU();
  const TernaryTensor w = to_device(random_weights(16, 8), Device::cuda);
  Tensor dx = empty_on_gpu({4, 8}, DType::bf16);
  const QuantTensor narrow = make_gradient_rows(4, 8, DType::bf16, Device::cuda);
  expect_error<ShapeError>({"ternary_dx_int8", "rows"}, [&] { ternary_dx_int8(Gradient(Tensor(), narrow), w, dx, 0); });
  QuantTensor few = make_gradient_rows(4, 16, DType::bf16, Device::cuda);
  few.scale = few.scale.slice(0, 3);
  expect_error<ShapeError>({"ternary_dx_int8", "steps"}, [&] { ternary_dx_int8(Gradient(Tensor(), few), w, dx, 0); });
}

}  // namespace mmfree
