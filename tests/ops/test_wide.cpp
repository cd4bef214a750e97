// The forms of norms and scan for 512-bit vectors have the bits of the ordinary ones.
#include <gtest/gtest.h>

#include "core/cpu/wide.h"
#include "core/ops/mlgru_scan.h"
#include "core/ops/norm_quant.h"
#include "tests/support/compare.h"
#include "tests/support/tensors.h"

#if MMFREE_WIDE_VECTORS
namespace mmfree {
namespace {

/// Calls compute() with and without wide vectors; both must give the same tensors.
template <class Compute>
void expect_same(Compute&& compute) {
  cpu::wide_vectors_allowed = false;
  const std::vector<Tensor> plain = compute();
  cpu::wide_vectors_allowed = true;
  const std::vector<Tensor> wide = compute();
  ASSERT_EQ(plain.size(), wide.size());
  for (size_t i = 0; i < plain.size(); ++i) EXPECT_TRUE(same_bits(plain[i], wide[i])) << "output " << i;
}

/// Adds what a backward pass gives.
void add_gradients(const RowSource& source, const Tensor& outer, const NormStats& stats,
                   const std::vector<NormBranch>& branches, std::vector<Tensor>& all) {
  const int64_t n = source.rows_count(), d = source.width();
  RowSourceGrad grad;
  grad.a = Tensor({n, d}, DType::f32);
  if (source.b.defined() && source.kind != RowSource::sum) grad.b = Tensor({n, d}, DType::f32);
  if (source.weight.defined()) grad.weight = Tensor({d}, DType::f32);
  std::vector<NormBranchGrad> branch_grads;
  for (const NormBranch& b : branches) {
    NormBranchGrad g{b.weight, random_tensor({n, d}, DType::f32, 9), {}, 0, b.rounding};
    if (b.weight.defined()) g.dweight = Tensor({d}, DType::f32);
    g.u = Tensor({n, d}, DType::f32);
    branch_grads.push_back(g);
  }
  Tensor douter({d}, DType::f32);
  norm_quant_backward(source, outer, 1e-6, stats, branch_grads, grad, douter, 0);
  for (const Tensor& t : {grad.a, grad.b, grad.weight, branch_grads[0].dweight, branch_grads[0].u, branch_grads[1].u})
    if (t.defined()) all.push_back(t);
  all.push_back(douter);
}

std::vector<Tensor> norm(const RowSource& source, Rounding rounding) {
  const int64_t n = source.rows_count(), d = source.width();
  const Tensor outer = random_tensor({d}, DType::f32, 7, 0.3, 1), inner = random_tensor({d}, DType::f32, 8, 0.3, 1);
  const bool codes = rounding == Rounding::int8;
  std::vector<NormBranch> branches(2);
  for (NormBranch& b : branches) {
    b.rounding = rounding, b.out = Tensor({n, d}, codes ? DType::i8 : DType::f32);
    if (codes) b.step = Tensor({n}, DType::f32);
  }
  branches[0].weight = inner;
  NormStats stats = make_norm_stats(source, outer, branches);
  Tensor x;
  if (source.kind == RowSource::sum) x = Tensor({n, d}, DType::f32);
  norm_quant(source, outer, 1e-6, 1e-6, branches, stats, x);
  std::vector<Tensor> all{branches[0].out, branches[1].out, stats.r1, stats.r2};
  if (codes) all.insert(all.end(), {branches[0].step, branches[1].step});
  if (stats.r0.defined()) all.push_back(stats.r0);
  if (x.defined()) all.push_back(x);
  add_gradients(source, outer, stats, branches, all);
  return all;
}

TEST(WideVectors, NormsHaveTheSameBits) {
  if (!cpu::has_wide_vectors()) GTEST_SKIP() << "no AVX-512";
  for (int64_t d : {1, 15, 16, 17, 37, 256, 1000})
    for (Rounding rounding : {Rounding::int8, Rounding::bf16, Rounding::none}) {
      const Tensor a = random_tensor({5, d}, DType::f32, 1, 3), b = random_tensor({5, d}, DType::f32, 2, 3);
      const Tensor weight = random_tensor({d}, DType::f32, 3, 0.3, 1);
      expect_same([&] { return norm({RowSource::rows, a, {}, {}}, rounding); });
      expect_same([&] { return norm({RowSource::sum, a, b, {}}, rounding); });
      expect_same([&] { return norm({RowSource::gate, a, b, weight, 1e-6}, rounding); });
      expect_same([&] { return norm({RowSource::gate, a, b, {}}, rounding); });
      for (Activation f : kAllActivations) {
        expect_same([&] { return norm({RowSource::glu, a, b, {}, 0, f}, rounding); });
        expect_same([&] { return norm({RowSource::activation, a, {}, {}, 0, f}, rounding); });
      }
    }
}

TEST(WideVectors, TheScanHasTheSameBits) {
  if (!cpu::has_wide_vectors()) GTEST_SKIP() << "no AVX-512";
  for (int64_t d : {1, 16, 37, 64, 200}) {
    const Tensor z = random_tensor({2, 9, d}, DType::f32, 1, 4), a = random_tensor({2, 9, d}, DType::f32, 2, 4);
    const Tensor before = random_tensor({2, d}, DType::f32, 3);
    Tensor bound = random_tensor({d}, DType::f32, 4);
    for (int64_t k = 0; k < d; ++k) bound.mut<float>()[k] = std::abs(bound.data<float>()[k]) / 8;
    expect_same([&] {
      Tensor h(z.shape(), DType::f32), last({2, d}, DType::f32);
      mlgru_scan(z, a, bound, before, {}, h, last);
      return std::vector<Tensor>{h, last};
    });
  }
}

}  // namespace
}  // namespace mmfree
#endif
