#include "core/ops/gate_norm.h"
#include "tests/cuda/twins.h"
#include "tests/support/composed.h"

using namespace mmfree;

namespace {

constexpr double kEps = 1e-6;

struct Problem {
  Tensor a, b, weight, dy;
};

Problem make_problem(int64_t n, int64_t d, DType t, bool weight) {
  return {random_of({n, d}, t, 1), random_of({n, d}, t, 2, 3),
          weight ? random_of({d}, DType::f32, 3, 0.5, 1) : Tensor(), random_of({n, d}, t, 4)};
}

struct Results {
  Tensor y, r, da, db, dweight;
};

/// Forward and backward, in f64 on the CPU or as `t` on the GPU, into outputs that hold `old` where it is defined.
Results run(const Problem& p, Device device, DType t, const Results& old, double beta) {
  const bool gpu = device == Device::cuda;
  const DType param = gpu ? DType::f32 : DType::f64;
  const auto as = [&](const Tensor& x, DType dtype) { return gpu ? to_gpu(x, dtype) : x.defined() ? x.clone() : x; };
  const Tensor a = as(p.a, t), b = as(p.b, t), weight = as(p.weight, param), dy = as(p.dy, t);
  Results o{Tensor(a.shape(), t, device), Tensor({a.dim(0)}, param, device), as(old.da, t), as(old.db, t),
            as(old.dweight, param)};
  gate_norm(a, b, weight, kEps, o.y, o.r);
  gate_norm_backward(a, b, weight, o.r, dy, o.da, beta, o.db, beta, o.dweight, beta);
  return o;
}

Results old_gradients(const Problem& p, DType t) {
  return {{},
          {},
          random_of(p.a.shape(), t, 5),
          random_of(p.a.shape(), t, 6),
          p.weight.defined() ? random_of(p.weight.shape(), DType::f32, 7) : Tensor()};
}

}  // namespace

TEST(CudaGateNorm, FollowsTheCpu) {
  MMFREE_NEEDS_GPU();
  for (DType t : {DType::f32, DType::bf16})
    for (int64_t d : {1, 7, 33, 100, 256, 1000, 2048})
      for (int64_t n : {1, 3, 130})
        for (bool weight : {false, true})
          for (double beta : {0.0, 1.0}) {
            SCOPED_TRACE(concat(name_of(t), ' ', n, 'x', d, " weight ", weight, " beta ", beta));
            const Problem p = make_problem(n, d, t, weight);
            const Results old = old_gradients(p, t), expected = run(p, Device::cpu, DType::f64, old, beta);
            const Results got = run(p, Device::cuda, t, old, beta);
            EXPECT_LE(relative_error(from_gpu(got.y), expected.y), gpu_bound(t));
            EXPECT_LE(relative_error(from_gpu(got.db), expected.db), gpu_bound(t));
            if (weight) {
              EXPECT_LE(relative_error(from_gpu(got.r), expected.r), gpu_bound(DType::f32));
              EXPECT_LE(relative_error(from_gpu(got.dweight), expected.dweight), gpu_bound(DType::f32));
            }
            if (weight && d == 1) continue;  // da is the difference of nearly equal numbers
            EXPECT_LE(relative_error(from_gpu(got.da), expected.da), gpu_bound(t));
          }
}

TEST(CudaGateNorm, LeavesUnwantedGradientsAlone) {
  MMFREE_NEEDS_GPU();
  const Problem p = make_problem(5, 33, DType::f32, true);
  const Results old = old_gradients(p, DType::f32), all = run(p, Device::cuda, DType::f32, old, 0);
  for (int wanted : {0, 1, 2}) {
    Results some;
    (wanted == 0   ? some.da
     : wanted == 1 ? some.db
                   : some.dweight) = wanted == 0   ? old.da
                                     : wanted == 1 ? old.db
                                                   : old.dweight;
    const Results got = run(p, Device::cuda, DType::f32, some, 0);
    const auto pick = [&](const Results& r) { return wanted == 0 ? r.da : wanted == 1 ? r.db : r.dweight; };
    EXPECT_TRUE(same_bits(pick(got).to(Device::cpu), pick(all).to(Device::cpu)));
  }
}

TEST(CudaGateNorm, GivesTheSameBitsTwice) {
  MMFREE_NEEDS_GPU();
  const Problem p = make_problem(3000, 100, DType::bf16, true);
  const Results old = old_gradients(p, DType::bf16);
  expect_repeatable([&] {
    const Results o = run(p, Device::cuda, DType::bf16, old, 1);
    return std::vector<Tensor>{o.y, o.r, o.da, o.db, o.dweight};
  });
}

TEST(CudaGateNorm, NaNReachesTheOutput) {
  MMFREE_NEEDS_GPU();
  for (DType t : {DType::f32, DType::bf16})
    for (bool weight : {false, true}) {
      Problem p = make_problem(3, 33, t, weight);
      set(p.a, 33 + 32, kNaN);
      set(p.b, 66 + 5, kNaN);
      const Tensor y = from_gpu(run(p, Device::cuda, t, old_gradients(p, t), 0).y);
      EXPECT_EQ(0, count_non_finite(y.slice(0, 1)));
      EXPECT_EQ(weight ? 33 : 1, count_non_finite(y.slice(1, 2)));
      EXPECT_EQ(1, count_non_finite(y.slice(2, 3)));
    }
}
