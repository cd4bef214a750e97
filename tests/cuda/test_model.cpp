// Whole models on a GPU: the golden sets, training steps eager and recorded, decoding.
#include <gtest/gtest.h>

#include "layers/parameters.h"
#include "tests/cuda/small_run.h"
#include "tests/support/compare.h"
#include "tests/support/golden_run.h"

namespace mmfree {
namespace {

class CudaGolden : public testing::TestWithParam<std::string> {};
class CudaGoldenInt8 : public CudaGolden {};
class CudaGoldenBf16 : public CudaGolden {};  // of the oracle's sets, for which the cost of bf16 was measured

// The bounds are those of the CPU's float32 test and for its reasons (see tests/layers/test_golden.cpp).
TEST_P(CudaGolden, Float32StaysWithinRoundingAndCodeFlips) {
  MMFREE_NEEDS_GPU();
  const Golden g(GetParam());
  ParamStore params(parameter_specs(g.config), DType::f32, Device::cuda);
  load_parameters(g, params);
  const LM lm(params, g.config);
  const Example e(g.expected, Device::cuda);

  LM::Trace trace;
  lm.hidden(e.ids, e.sequences(), &trace);
  bool flipped = false;
  for (size_t i = 0; i < trace.size(); ++i) {
    const double error = norm_error(host_f32(trace[i]), g.expected.read("hidden/" + std::to_string(i), DType::f64));
    EXPECT_LT(error, 5e-2) << "hidden " << i;
    flipped |= error > 2e-6;
  }
  const double expected_loss = g.expected.read("loss", DType::f64).data<double>()[0];
  for (Recompute r : kAllRecomputes) {
    EXPECT_NEAR(run_backward(lm, params, e, r), expected_loss, (flipped ? 1e-3 : 1e-5) * expected_loss)
        << (flipped ? "with" : "without") << " flipped codes";
    double error = 0, size = 0;
    for (size_t i = 0; i < params.specs().size(); ++i) {
      const std::string& name = params.specs()[i].name;
      const Tensor expected = g.gradient(name);
      const double relative = norm_error(host_f32(params.view(params.grads(), i)), expected);
      Tensor squares({1}, DType::f64);
      sum_of_squares(expected, squares);
      error += relative * relative * *squares.data<double>();
      size += *squares.data<double>();
      if (!flipped) {
        EXPECT_LT(relative, 1e-4) << name;
      }
    }
    EXPECT_LT(std::sqrt(error / size), flipped ? 5e-2 : 1e-5) << name_of(r);
  }
}

// Fixed before the first run: three times the most that bf16 costs an oracle that rounds the same tensors, over 6
// golden sets and 12 random models (tests/golden/README.md).
constexpr double kBf16Loss = 6e-4, kBf16Logits = 0.1, kBf16Hidden = 0.1, kBf16Gradient = 0.13, kBf16Tensor = 0.2;

/// ‖g − g64‖ / ‖g64‖ of all gradients together; that of each tensor must be below `tensor`.
double gradient_error(ParamStore& params, const Golden& g, double tensor) {
  double error = 0, size = 0;
  for (size_t i = 0; i < params.specs().size(); ++i) {
    const std::string& name = params.specs()[i].name;
    const Tensor expected = g.gradient(name);
    const double relative = norm_error(host_f32(params.view(params.grads(), i)), expected);
    EXPECT_LT(relative, tensor) << name;
    Tensor squares({1}, DType::f64);
    sum_of_squares(expected, squares);
    error += relative * relative * *squares.data<double>();
    size += *squares.data<double>();
  }
  return std::sqrt(error / size);
}

TEST_P(CudaGoldenBf16, StaysWithinItsRounding) {
  MMFREE_NEEDS_GPU();
  const Golden g(GetParam());
  ParamStore params(parameter_specs(g.config), DType::f32, Device::cuda);
  load_parameters(g, params);
  const LM lm(params, g.config, DType::bf16);
  const Example e(g.expected, Device::cuda);
  LM::Trace trace;
  lm.hidden(e.ids, e.sequences(), &trace);
  for (size_t i = 0; i < trace.size(); ++i)
    EXPECT_LT(norm_error(host_f32(trace[i]), g.expected.read("hidden/" + std::to_string(i), DType::f64)), kBf16Hidden)
        << "hidden " << i;
  const Tensor logits = g.expected.read("logits", DType::f64);
  EXPECT_LT(norm_error(host_f32(lm.logits(e.ids, e.sequences())).reshape(logits.shape()), logits), kBf16Logits);
  const double expected_loss = g.expected.read("loss", DType::f64).data<double>()[0];
  Tensor first;
  for (Recompute r : kAllRecomputes) {
    SCOPED_TRACE(name_of(r));
    EXPECT_NEAR(run_backward(lm, params, e, r), expected_loss, kBf16Loss * expected_loss);
    const Tensor grads = params.grads().to(Device::cpu);
    EXPECT_TRUE(!first.defined() || same_bits(first, grads));
    if (!first.defined()) first = grads;
    EXPECT_LT(gradient_error(params, g, kBf16Tensor), kBf16Gradient);
  }
}

// Products of the backward pass in 8 bits. Fixed before the first run, as above: three times the most that they cost
// the oracle rounding the same tensors (bf16_bounds.py --int8, in f32 with --f32); in f32 a flipped code adds its own
// bound.
struct Int8Bounds {
  DType compute;
  double gradient, tensor, flipped;
};
constexpr Int8Bounds kInt8Bounds[] = {{DType::f32, 0.033, 0.063, 5e-2}, {DType::bf16, 0.137, 0.195, 0}};

TEST_P(CudaGoldenInt8, StaysWithinItsRounding) {
  MMFREE_NEEDS_GPU();
  const Golden g(GetParam());
  ParamStore params(parameter_specs(g.config), DType::f32, Device::cuda);
  load_parameters(g, params);
  const Example e(g.expected, Device::cuda);
  for (const Int8Bounds& bounds : kInt8Bounds) {
    const LM lm(params, g.config, bounds.compute, BackwardProducts{Products::int8, Products::compute});
    Tensor first;
    for (Recompute r : kAllRecomputes) {
      SCOPED_TRACE(concat(name_of(bounds.compute), ' ', name_of(r)));
      run_backward(lm, params, e, r);
      const Tensor grads = params.grads().to(Device::cpu);
      EXPECT_TRUE(!first.defined() || same_bits(first, grads));
      if (!first.defined()) first = grads;
      EXPECT_LT(gradient_error(params, g, bounds.tensor + 4 * bounds.flipped), bounds.gradient + bounds.flipped);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Sets, CudaGolden, testing::ValuesIn(golden_dirs()), set_name);
INSTANTIATE_TEST_SUITE_P(Sets, CudaGoldenBf16, testing::ValuesIn(golden_dirs()), set_name);
INSTANTIATE_TEST_SUITE_P(Sets, CudaGoldenInt8, testing::ValuesIn(golden_dirs()), set_name);
INSTANTIATE_TEST_SUITE_P(Transformers, CudaGolden, testing::ValuesIn(transformers_dirs()), set_name);

/// Sizes of micro-batches (0, 2, 1: one, two and four of them) and products of the backward pass.
constexpr std::pair<int64_t, Products> kMicroBatches[] = {
    {0, Products::compute}, {2, Products::compute}, {1, Products::compute}, {0, Products::int8}, {2, Products::int8}};

TEST(CudaStep, ARecordedStepEqualsAnEagerOneToTheBit) {
  MMFREE_NEEDS_GPU();
  for (const auto& [micro, products] : kMicroBatches) {
    SCOPED_TRACE(concat("micro-batches of ", micro, ' ', name_of(products)));
    SmallRun eager(false, DType::bf16, Recompute::selective, micro, false, products),
        recorded(true, DType::bf16, Recompute::selective, micro, false, products);
    for (int64_t s = 0; s < 20; ++s) {
      const int64_t of = s % 4 == 3 ? 1 + s : 1;  // the number of scored targets is not recorded
      const StepResult a = eager.step(s, of), b = recorded.step(s, of);
      EXPECT_EQ(a.loss, b.loss) << "step " << s;
      EXPECT_EQ(a.report.grad_norm, b.report.grad_norm) << "step " << s;
      EXPECT_EQ(a.report.learning_rate, b.report.learning_rate) << "step " << s;
    }
    EXPECT_TRUE(same_bits(eager.params->values().to(Device::cpu), recorded.params->values().to(Device::cpu)));
    EXPECT_TRUE(same_bits(eager.optimizer->v().to(Device::cpu), recorded.optimizer->v().to(Device::cpu)));
  }
}

TEST(CudaStep, ARecordedStepCarriesTheStateToTheBit) {
  MMFREE_NEEDS_GPU();
  for (const Recompute recompute : {Recompute::selective, Recompute::full})
    for (const int64_t micro : {0, 2, 1}) {
      SCOPED_TRACE(concat("micro-batches of ", micro, ", recompute ", name_of(recompute)));
      SmallRun eager(false, DType::bf16, recompute, micro, true), recorded(true, DType::bf16, recompute, micro, true);
      for (int64_t s = 0; s < 12; ++s) {
        const StepResult a = eager.step(s), b = recorded.step(s);
        EXPECT_EQ(a.loss, b.loss) << "step " << s;
        if (s == 6)  // a batch without scored targets
          for (SmallRun* run : {&eager, &recorded}) run->runner->launch(s, 0), run->runner->collect();
        DecodeState there = recorded.runner->carried();
        eager.runner->carried().for_each([&](int64_t l, size_t i, const Tensor& t) {
          EXPECT_TRUE(same_bits(t.to(Device::cpu), there.layer(l).at(i).to(Device::cpu))) << "step " << s;
        });
      }
      EXPECT_TRUE(same_bits(eager.params->values().to(Device::cpu), recorded.params->values().to(Device::cpu)));
    }
}

TEST(CudaStep, TheLossIsTheMeanOverTheScoredTargets) {
  MMFREE_NEEDS_GPU();
  SmallRun run(true, DType::f32, Recompute::none, 2);
  for (int64_t s = 0; s < 4; ++s) {
    const int64_t of = 1 + 3 * s;
    const Tensor before = run.params->values().to(Device::cpu);
    const StepResult result = run.step(s, of);
    const Tensor after = run.params->values().to(Device::cpu), ids = run.runner->ids(), targets = run.runner->targets();
    run.params->values().copy_from(before);
    run.lm->requantise();
    const Tensor nll = run.lm->nll(ids, targets, run.config.train.batch_size).to(Device::cpu);
    run.params->values().copy_from(after);
    run.lm->requantise();
    double mean = 0;
    for (int64_t i = 0; i < nll.size(); ++i) mean += double(nll.data<float>()[i]) / double(result.scored);
    EXPECT_EQ((nll.size() + of - 1) / of, result.scored);
    EXPECT_NEAR(mean, result.loss, 1e-3 * mean) << "step " << s;
  }
}

TEST(CudaStep, ABatchWithoutScoredTargetsChangesNothing) {
  MMFREE_NEEDS_GPU();
  SmallRun run(true);
  for (int64_t s = 0; s < 3; ++s) run.step(s);
  const Tensor before = run.params->values().to(Device::cpu);
  run.runner->launch(3, 0);
  const StepResult empty = *run.runner->collect();
  EXPECT_EQ(4, empty.step);
  EXPECT_TRUE(empty.report.skipped);
  EXPECT_TRUE(same_bits(before, run.params->values().to(Device::cpu)));
  EXPECT_FALSE(run.step(4).report.skipped);
}

TEST(CudaStep, TensorsMadeAfterTheRecordingAreNoticed) {
  MMFREE_NEEDS_GPU();
  SmallRun run(true, DType::bf16, Recompute::selective, 2);
  for (int64_t s = 0; s < 3; ++s) run.step(s);
  const Tensor late({1000}, DType::f32, Device::cuda);
  EXPECT_THROW(run.step(3), Error);
}

TEST(CudaStep, LossFallsAndEveryParameterGetsAGradient) {
  MMFREE_NEEDS_GPU();
  for (const auto& [compute, products] : {std::pair{DType::bf16, Products::compute},
                                          {DType::f32, Products::compute},
                                          {DType::bf16, Products::int8},
                                          {DType::f32, Products::int8}}) {
    SmallRun run(true, compute, Recompute::selective, 0, false, products);
    double first = 0, last = 0;
    for (int64_t s = 0; s < 10; ++s) {
      const StepResult r = run.step(s);
      (s ? last : first) = r.loss;
      EXPECT_FALSE(r.report.skipped);
      for (size_t i = 0; i < run.params->specs().size(); ++i) {
        Tensor squares({1}, DType::f64, Device::cuda);
        sum_of_squares(run.params->view(run.params->grads(), i), squares);
        const double n = *squares.to(Device::cpu).data<double>();
        EXPECT_TRUE(std::isfinite(n) && n > 0) << run.params->specs()[i].name << " in step " << s;
      }
    }
    EXPECT_LT(last, first);
  }
}

TEST(CudaStep, NothingIsAllocatedAfterTheSecondStep) {
  MMFREE_NEEDS_GPU();
  for (const bool capture : {true, false}) {
    const ArenaScope own(Arena::gpu());
    SmallRun run(capture);
    for (int64_t s = 0; s < 2; ++s) run.step(s);
    const ArenaStats before = Arena::current(Device::cuda)->stats();
    for (int64_t s = 2; s < 22; ++s) run.step(s);
    const ArenaStats after = Arena::current(Device::cuda)->stats();
    EXPECT_EQ(before.slabs, after.slabs) << capture;
    EXPECT_EQ(before.live, after.live) << capture;
  }
}

TEST(CudaStep, WaysToRecomputeGiveTheSameBits) {
  MMFREE_NEEDS_GPU();
  for (Recompute recompute : {Recompute::rounded, Recompute::selective, Recompute::full}) {
    SmallRun none(true, DType::bf16, Recompute::none), other(true, DType::bf16, recompute);
    for (int64_t s = 0; s < 6; ++s) {
      const StepResult a = none.step(s), b = other.step(s);
      EXPECT_EQ(a.loss, b.loss) << name_of(recompute) << " step " << s;
      EXPECT_EQ(a.report.grad_norm, b.report.grad_norm) << name_of(recompute) << " step " << s;
    }
  }
}

TEST(CudaStep, WaysToRecomputeGiveTheSameBitsInEightBits) {
  MMFREE_NEEDS_GPU();
  SmallRun none = SmallRun::int8(true, Recompute::none), plain(true, DType::bf16, Recompute::none);
  std::vector<StepResult> expected;
  for (int64_t s = 0; s < 4; ++s) {
    expected.push_back(none.step(s));
    const StepResult other = plain.step(s);
    EXPECT_EQ(s == 0, expected.back().loss == other.loss) << "step " << s;
    EXPECT_NE(expected.back().report.grad_norm, other.report.grad_norm) << "nothing was rounded";
    EXPECT_NEAR(expected.back().report.grad_norm, other.report.grad_norm, 0.1 * other.report.grad_norm);
  }
  const auto expect_same = [&](SmallRun& run, const std::string& name) {
    for (int64_t s = 0; s < 4; ++s) {
      const StepResult got = run.step(s);
      EXPECT_EQ(expected[size_t(s)].loss, got.loss) << name << " step " << s;
      EXPECT_EQ(expected[size_t(s)].report.grad_norm, got.report.grad_norm) << name << " step " << s;
    }
  };
  for (Recompute recompute : {Recompute::rounded, Recompute::selective, Recompute::full}) {
    SmallRun run = SmallRun::int8(true, recompute);
    expect_same(run, name_of(recompute));
  }
  for (int64_t keep : {0, 2, 9}) {  // of three blocks
    SmallRun run = SmallRun::int8(true);
    run.keep_blocks(keep);
    expect_same(run, concat("blocks kept ", keep));
  }
}

TEST(CudaStep, MicroBatchesAgreeWithTheWholeBatch) {
  MMFREE_NEEDS_GPU();
  SmallRun whole(true, DType::f32), parts(true, DType::f32, Recompute::selective, 2);
  for (int64_t s = 0; s < 3; ++s) {
    const StepResult a = whole.step(s), b = parts.step(s);
    EXPECT_NEAR(a.loss, b.loss, 1e-3 * a.loss) << "step " << s;
    EXPECT_NEAR(a.report.grad_norm, b.report.grad_norm, 2e-2 * a.report.grad_norm) << "step " << s;
  }
}

void expect_no_update_from_an_infinity(SmallRun run) {
  for (int64_t s = 0; s < 4; ++s) run.step(s);
  Tensor weight = run.params->view(run.params->values(), 1);
  const Tensor kept = weight.to(Device::cpu);  // not on the GPU: a recorded step owns the arena's free memory
  fill(weight, std::numeric_limits<double>::infinity());
  const Tensor before = run.params->values().to(Device::cpu), m = run.optimizer->m().to(Device::cpu);
  EXPECT_TRUE(run.step(4).report.skipped);
  EXPECT_TRUE(same_bits(before, run.params->values().to(Device::cpu)));
  EXPECT_TRUE(same_bits(m, run.optimizer->m().to(Device::cpu)));
  weight.copy_from(kept);
  run.lm->requantise();
  run.optimizer->measure();
  EXPECT_FALSE(run.step(5).report.skipped);
}

TEST(CudaStep, AnInfinityLeavesTheParametersAlone) {
  MMFREE_NEEDS_GPU();
  expect_no_update_from_an_infinity(SmallRun(true));
  expect_no_update_from_an_infinity(SmallRun::int8(true));
}

TEST(CudaStep, DecodingTokenByTokenAgreesWithTheWholeSequence) {
  MMFREE_NEEDS_GPU();
  SmallRun run(true, DType::f32);
  run.step(0);
  const int64_t n = 40;
  const Tensor ids = run.runner->ids().slice(0, n).clone();
  const Tensor all = host_f32(run.lm->logits(ids, 1));
  DecodeState state(run.config.model.num_hidden_layers);
  for (int64_t t = 0; t < n; ++t) {
    const Tensor one = host_f32(run.lm->next_logits(ids.slice(t, t + 1), 1, state));
    EXPECT_LT(norm_error(one, all.slice(t, t + 1)), 5e-2) << "token " << t;
  }
}

}  // namespace
}  // namespace mmfree
