// The precisions of a projection under bf16 activations.
#include "autograd/ops.h"
#include "core/ops/linear.h"
#include "tests/cuda/twins.h"
#include "tests/support/composed.h"
#include "tests/support/gradcheck.h"

using namespace mmfree;

namespace {

/// What f32 sums of up to 1,000 f32 products may err by, relative to the sum of their sizes. Operands in TF32 would err
/// by 2^-11, in bf16 by 2^-8.
constexpr double kF32 = 1e-6;

/// Expects |got − a·b| <= relative · |a·b| + kF32 · |a|·|b|, element by element.
void expect_product(const Tensor& got, const Tensor& a, bool transpose_a, const Tensor& b, bool transpose_b) {
  const auto sizes = [](const Tensor& t) {
    Tensor y = t.clone();
    for (int64_t i = 0; i < y.size(); ++i) set(y, i, std::abs(at(y, i)));
    return y;
  };
  const double relative = got.dtype() == DType::bf16 ? 0x1p-8 : 0;
  const Tensor exact = composed::product(a, transpose_a, b, transpose_b), here = from_gpu(got);
  const Tensor size = composed::product(sizes(a), transpose_a, sizes(b), transpose_b);
  ASSERT_EQ(exact.shape(), here.shape());
  for (int64_t i = 0; i < exact.size(); ++i)
    ASSERT_NEAR(at(exact, i), at(here, i), relative * std::abs(at(exact, i)) + kF32 * at(size, i)) << i;
}

struct Results {
  Tensor y, dx, dw;
};

Results run(const Tensor& x, const Tensor& w, const Tensor& dy, DType operands) {
  WeightMatrix matrix;
  matrix.plain = to_gpu(w, operands);
  const QuantTensor values(to_gpu(x, operands), DType::bf16);
  Results p{gpu_tensor(dy.shape(), DType::bf16), gpu_tensor(x.shape(), DType::bf16), gpu_tensor(w.shape(), DType::f32)};
  linear(values, matrix, p.y);
  linear_dx(to_gpu(dy, DType::bf16), matrix, p.dx, 0);
  linear_dw(to_gpu(dy, DType::bf16), values, p.dw, 0);
  return p;
}

}  // namespace

TEST(CudaLinear, OperandsHaveTheDtypeThatTheirPrecisionNames) {
  MMFREE_NEEDS_GPU();
  for (DType operands : {DType::f32, DType::bf16})
    for (int64_t k : {8, 33, 256, 1000}) {
      if (operands == DType::bf16 && k % 8) continue;  // no product of cuBLASLt
      SCOPED_TRACE(concat(name_of(operands), ' ', k));
      const Tensor x = random_of({24, k}, operands, 1), w = random_of({40, k}, operands, 2);
      const Tensor dy = random_of({24, 40}, DType::bf16, 3);
      const Results p = run(x, w, dy, operands);
      expect_product(p.y, x, false, w, true);
      expect_product(p.dx, dy, false, w, false);
      expect_product(p.dw, dy, true, x, false);
    }
}

TEST(CudaLinear, AnF32ProductUnderBf16HonoursBeta) {
  MMFREE_NEEDS_GPU();
  const Tensor w = random_of({40, 64}, DType::f32, 1), dy = random_of({24, 40}, DType::bf16, 2);
  const Tensor before = random_of({24, 64}, DType::bf16, 3), exact = composed::product(dy, false, w, false);
  WeightMatrix matrix;
  matrix.plain = to_gpu(w, DType::f32);
  Tensor dx = to_gpu(before, DType::bf16);
  linear_dx(to_gpu(dy, DType::bf16), matrix, dx, 1);
  const Tensor got = from_gpu(dx);
  for (int64_t i = 0; i < got.size(); ++i) {
    const double sum = at(before, i) + at(exact, i);
    ASSERT_NEAR(sum, at(got, i), 0x1p-8 * std::abs(sum) + 1e-4) << i;
  }
}

TEST(CudaNormLinear, AnF32ProjectionUnderBf16IsF32WhateverIsKept) {
  MMFREE_NEEDS_GPU();
  const int64_t n = 24, d = 96, o = 40;
  const Tensor x = random_of({n, d}, DType::bf16, 1, 2), norm = random_of({d}, DType::f32, 2, 0.5, 1);
  const Tensor w = random_of({o, d}, DType::f32, 3), dy = random_of({n, o}, DType::bf16, 4);
  for (bool normed : {true, false}) {
    const Tensor u = normed ? composed::rmsnorm(x, norm, 1e-6) : x;
    std::vector<Tensor> first;
    for (Keep keep : {Keep::all, Keep::source, Keep::terms, Keep::codes}) {
      const Var a = Var::leaf(to_gpu(x, DType::bf16)), latent = Var::leaf(to_gpu(w, DType::f32));
      const Var weight = normed ? Var::leaf(to_gpu(norm, DType::f32)) : Var();
      WeightMatrix matrix;
      matrix.plain = latent.value();
      Tape tape;
      const Var y =
          norm_linear(Source::rows(a), Var(), 1e-6, 1e-6, {{{weight, Rounding::none}, latent, &matrix}}, keep)[0];
      EXPECT_EQ(DType::bf16, y.value().dtype());
      expect_product(y.value(), u, false, w, true);
      tape.backward({y}, {to_gpu(dy, DType::bf16)});
      expect_product(latent.grad(), dy, true, u, false);
      const std::vector<Tensor> all{y.value().to(Device::cpu), a.grad().to(Device::cpu), latent.grad().to(Device::cpu)};
      if (first.empty()) first = all;
      for (size_t i = 0; i < all.size(); ++i)
        EXPECT_TRUE(same_bits(first[i], all[i])) << "keep " << int(keep) << ' ' << i;
    }
  }
}

// bf16(bf16(dx) + g) is not bf16(dx + g): with the block's input as rows or as a sum, the stream must round once.
TEST(CudaNormLinear, ARowsGradientIsAddedToItsOthersBeforeItIsRounded) {
  MMFREE_NEEDS_GPU();
  const int64_t n = 24, o = 40;
  for (int64_t d : {96, 33}) {
    const Tensor x = random_of({n, d}, DType::f32, 1, 2), norm = random_of({d}, DType::f32, 2, 0.5, 1);
    const Tensor w = random_of({o, d}, DType::f32, 3), dy = random_of({n, o}, DType::bf16, 4);
    const Tensor given = random_of({n, d}, DType::bf16, 5), zero = full({n, d}, DType::f64, 0);
    enum class Form { sum, leaf, value };
    Tensor expected;
    for (Form form : {Form::sum, Form::leaf, Form::value}) {
      const Var leaf = Var::leaf(QuantTensor(to_gpu(x, DType::f32), DType::bf16));
      const Var latent = Var::leaf(to_gpu(w, DType::f32)), weight = Var::leaf(to_gpu(norm, DType::f32));
      const Var none(to_gpu(zero, DType::bf16));
      WeightMatrix matrix;
      matrix.plain = latent.value();
      Tape tape;
      const Var a = form == Form::value ? add(leaf, none) : leaf;
      const Source source = form == Form::sum ? Source::sum(a, none) : Source::rows(a);
      const auto ys = norm_linear(source, weight, 1e-6, 1e-6, {{{Var(), Rounding::none}, latent, &matrix}}, Keep::all);
      tape.backward({ys[0], form == Form::sum ? ys.back() : a}, {to_gpu(dy, DType::bf16), to_gpu(given, DType::bf16)});
      const Tensor got = leaf.grad().to(Device::cpu);
      if (form == Form::sum) expected = got;
      EXPECT_TRUE(same_bits(expected, got)) << "form " << int(form) << ", width " << d;
    }
  }
}
