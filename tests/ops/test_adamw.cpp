#include <gtest/gtest.h>

#include "core/ops/adamw.h"
#include "tests/support/composed.h"

using namespace mmfree;

namespace {

constexpr int64_t kBlocks = 37, kSize = kBlocks * kParamBlock;

struct State {
  Tensor p, m, v, rates;
};

State make_state(DType t) {
  State s{random_tensor({kSize}, t, 1, 0.1), Tensor::zeros({kSize}, t), Tensor::zeros({kSize}, t),
          Tensor({kBlocks, 2}, DType::f64)};
  for (int64_t b = 0; b < kBlocks; ++b) {
    set(s.rates, 2 * b, b % 5 == 0 ? 0.5 : 1);
    set(s.rates, 2 * b + 1, b % 3 == 0 ? 0.1 : 0);
  }
  return s;
}

void make_positive(Tensor& v) {
  for (int64_t i = 0; i < v.size(); ++i) set(v, i, std::abs(at(v, i)));
}

StepParams params_of(int update) {
  StepParams s;
  s.lr = 4e-3 / update;
  s.decay_factor = 1;
  s.bias1 = 1 - std::pow(s.beta1, update);
  s.bias2 = 1 - std::pow(s.beta2, update);
  s.grad_scale = 0.25 * update;
  return s;
}

void run_adamw(State& s, const Tensor& grads, const StepParams& step) {
  Tensor unwanted;
  adamw(s.p, grads, s.m, s.v, s.rates, step_tensor(step, Device::cpu), unwanted);
}

Tensor grads(DType t, int update) { return random_tensor({kSize}, t, 10 + uint32_t(update), 1e-2); }

}  // namespace

TEST(Adamw, FollowsItsComposedTwinOverManySteps) {
  for (DType t : {DType::f64, DType::f32}) {
    State s = make_state(t);
    std::vector<composed::AdamwElement> expected;
    for (int64_t i = 0; i < kSize; i += 97) expected.push_back({at(s.p, i), 0, 0});
    for (int update = 1; update <= 5; ++update) {
      const Tensor g = grads(t, update);
      run_adamw(s, g, params_of(update));
      for (int64_t i = 0; i < kSize; i += 97)
        expected[size_t(i / 97)].update(at(g, i), at(s.rates, i / kParamBlock * 2),
                                        at(s.rates, i / kParamBlock * 2 + 1), params_of(update));
    }
    // Five updates of a few roundings each; beta, bias and lr are rounded to T as well.
    const double bound = 64 * epsilon_of(t);
    for (int64_t i = 0; i < kSize; i += 97) {
      const composed::AdamwElement& e = expected[size_t(i / 97)];
      ASSERT_NEAR(e.p, at(s.p, i), bound * (std::abs(e.p) + 4e-3)) << i;
      ASSERT_NEAR(e.m, at(s.m, i), bound * 1e-2) << i;
      ASSERT_NEAR(e.v, at(s.v, i), bound * (e.v + 1e-6)) << i;
    }
  }
}

TEST(Adamw, FirstStepMovesByTheLearningRate) {
  State s = make_state(DType::f64);
  const Tensor before = s.p.clone(), g = grads(DType::f64, 1);
  StepParams step = params_of(1);
  step.decay_factor = 0, step.eps = 0;
  run_adamw(s, g, step);
  for (int64_t i = 0; i < kSize; i += 53)
    ASSERT_NEAR(at(before, i) - std::copysign(step.lr * at(s.rates, i / kParamBlock * 2), at(g, i)), at(s.p, i), 1e-15);
}

TEST(Adamw, PaddingStaysZeroAndSkipChangesNothing) {
  for (DType t : {DType::f64, DType::f32}) {
    State s = make_state(t);
    Tensor g = grads(t, 1);
    for (int64_t i = kSize - 100; i < kSize; ++i) set(s.p, i, 0), set(g, i, 0);
    StepParams step = params_of(1);
    step.skip = true;
    const Tensor p = s.p.clone(), m = s.m.clone(), v = s.v.clone();
    run_adamw(s, full({kSize}, t, kNaN), step);
    EXPECT_TRUE(same_bits(p, s.p) && same_bits(m, s.m) && same_bits(v, s.v));
    run_adamw(s, g, params_of(1));
    for (int64_t i = kSize - 100; i < kSize; ++i) EXPECT_EQ(0, at(s.p, i));
  }
}

TEST(Adamw, LeavesTheSumsOfEachBlock) {
  for (DType t : {DType::f64, DType::f32})
    for (bool skip : {false, true}) {
      State s = make_state(t), plain = make_state(t);
      const Tensor g = grads(t, 1);
      StepParams step = params_of(1);
      step.skip = skip;
      for (State* state : {&s, &plain})
        state->m = random_tensor({kSize}, t, 5), state->v = random_tensor({kSize}, t, 6);
      for (State* state : {&s, &plain}) make_positive(state->v);
      Tensor sums = full({2, kBlocks}, DType::f64, kNaN);
      adamw(s.p, g, s.m, s.v, s.rates, step_tensor(step, Device::cpu), sums);
      run_adamw(plain, g, step);
      EXPECT_TRUE(same_bits(plain.p, s.p)) << "asking for the sums changes the update";
      for (int64_t b = 0; b < kBlocks; ++b) {
        double values = 0, moments = 0;
        for (int64_t i = b * kParamBlock; i < (b + 1) * kParamBlock; ++i) {
          values += std::abs(at(s.p, i));
          moments += at(s.m, i) * at(s.m, i) + std::abs(at(s.v, i));
        }
        ASSERT_NEAR(values, at(sums, b), 1e-12 * values) << b;
        ASSERT_NEAR(moments, at(sums, kBlocks + b), 256 * epsilon_of(t) * moments) << b;
      }
    }
}

TEST(Adamw, BeginsWithTheNormTheClipFactorAndTheBiases) {
  for (DType t : {DType::f64, DType::f32})
    for (double clip : {0.0, 0.5, 1e6}) {
      const Tensor g = grads(t, 1);
      StepParams before;
      before.lr = 0.125, before.decay_factor = 0.25, before.clip = clip, before.updates = 3, before.skip = 1;
      Tensor step = step_tensor(before, Device::cpu);
      adamw_begin(g, step);
      const StepParams after = step_params(step);
      double squares = 0;
      for (int64_t i = 0; i < g.size(); ++i) squares += at(g, i) * at(g, i);
      const double norm = std::sqrt(squares);
      EXPECT_NEAR(norm, after.grad_norm, 256 * epsilon_of(t) * norm);
      EXPECT_EQ(0, after.skip);
      EXPECT_EQ(4, after.updates);
      EXPECT_DOUBLE_EQ(1 - 0.9 * 0.9 * 0.9 * 0.9, after.bias1);
      EXPECT_DOUBLE_EQ(1 - 0.95 * 0.95 * 0.95 * 0.95, after.bias2);
      EXPECT_DOUBLE_EQ(clip == 0.5 ? 0.5 / (after.grad_norm + 1e-6) : 1, after.grad_scale);
      EXPECT_EQ(0.125, after.lr);
      EXPECT_EQ(0.25, after.decay_factor);
      EXPECT_EQ(clip, after.clip);
    }
}

TEST(Adamw, BeginsByRefusingGradientsThatAreNotFinite) {
  for (double bad : {kNaN, kInfinity, -kInfinity}) {
    Tensor g = grads(DType::f32, 1), step = step_tensor(params_of(7), Device::cpu);
    const StepParams before = step_params(step);
    set(g, kSize - 1, bad);
    adamw_begin(g, step);
    const StepParams after = step_params(step);
    EXPECT_EQ(1, after.skip);
    EXPECT_FALSE(std::isfinite(after.grad_norm));
    EXPECT_EQ(before.updates, after.updates);
    EXPECT_EQ(before.bias1, after.bias1);
    EXPECT_EQ(before.grad_scale, after.grad_scale);
    adamw_begin(grads(DType::f32, 1), step);
    EXPECT_EQ(0, step_params(step).skip) << "the next step counts again";
  }
  Tensor short_step({3}, DType::f64);
  expect_error<ShapeError>({"adamw_begin", "step"}, [&] { adamw_begin(grads(DType::f32, 1), short_step); });
}

TEST(Adamw, BeginsByRefusingWhateverWouldSpoilTheParameters) {
  const Tensor g = grads(DType::f32, 1);
  const auto skips = [&](const StepParams& params, const Tensor& sums, const Tensor& loss) {
    Tensor step = step_tensor(params, Device::cpu);
    adamw_begin(g, step, sums, loss);
    const StepParams after = step_params(step);
    EXPECT_TRUE(std::isfinite(after.grad_norm));
    EXPECT_EQ(params.updates + (after.skip ? 0 : 1), after.updates);
    return after.skip != 0;
  };
  /// What a skipped update says of a state.
  const auto sums_of = [&](State s) {
    StepParams skip;
    skip.skip = 1;
    Tensor sums({2, kBlocks}, DType::f64);
    adamw(s.p, g, s.m, s.v, s.rates, step_tensor(skip, Device::cpu), sums);
    return sums;
  };
  const State good = make_state(DType::f32);
  const Tensor sums = sums_of(good), loss = full({1}, DType::f64, 3);
  EXPECT_FALSE(skips(params_of(3), sums, loss));
  for (double bad : {kNaN, kInfinity, -kInfinity}) {
    for (Tensor State::*tensor : {&State::p, &State::m, &State::v}) {
      State s = good;
      s.*tensor = (good.*tensor).clone();
      set(s.*tensor, kSize / 3, bad);
      EXPECT_TRUE(skips(params_of(3), sums_of(s), loss)) << bad;
    }
    EXPECT_TRUE(skips(params_of(3), sums, full({1}, DType::f64, bad))) << bad;
    for (double StepParams::*rate : {&StepParams::lr, &StepParams::decay_factor}) {
      StepParams rates = params_of(3);
      rates.*rate = bad;
      EXPECT_TRUE(skips(rates, sums, loss)) << bad;
    }
  }
  for (const auto& [size, skip] : {std::pair{0.9, false}, {1.1, true}}) {
    State large = good;
    large.m = good.m.clone();
    set(large.m, 7, size * kMostNorm);
    EXPECT_EQ(skip, skips(params_of(3), sums_of(large), {}));
    large.m = good.m, large.v = good.v.clone();
    set(large.v, 7, size * kMostNorm * kMostNorm);
    EXPECT_EQ(skip, skips(params_of(3), sums_of(large), {}));
  }
}

TEST(Adamw, BeginsByRefusingANormThatCannotBeSquared) {
  for (const auto& [norm, skip] : {std::pair{0.9, 0.0}, {1.1, 1.0}}) {
    Tensor g = Tensor::zeros({kSize}, DType::f32), step = step_tensor(params_of(7), Device::cpu);
    set(g, 5, norm * kMostNorm);
    adamw_begin(g, step);
    EXPECT_EQ(skip, step_params(step).skip);
  }
}

/// A gradient whose norm is `norm`.
Tensor grads_of_norm(double norm) {
  Tensor g = Tensor::zeros({kSize}, DType::f32);
  set(g, 5, norm);
  return g;
}

TEST(Adamw, BeginsByRefusingOutliersOnceItKnowsWhatNormsAreUsual) {
  StepParams params = params_of(1);
  params.outlier = 3;
  Tensor step = step_tensor(params, Device::cpu);
  const auto skip = [&](double norm) {
    adamw_begin(grads_of_norm(norm), step);
    return step_params(step).skip;
  };
  double mean = 0;
  for (int i = 1; i <= 20; ++i) {
    const double norm = i == 1 ? 64 : 1;
    EXPECT_EQ(0, skip(norm)) << "too few are known";
    mean += (norm - mean) / i;
    EXPECT_EQ(mean, step_params(step).norm_mean);
  }
  const StepParams before = step_params(step);
  for (const double norm : {3.1 * mean, 1e6}) {
    EXPECT_EQ(kSkipOutlier, skip(norm));
    const StepParams after = step_params(step);
    EXPECT_NEAR(norm, after.grad_norm, 1e-6 * norm) << "it is told";
    EXPECT_EQ(before.updates, after.updates);
    EXPECT_EQ(before.bias1, after.bias1);
    EXPECT_EQ(before.norm_mean, after.norm_mean) << "an outlier does not become usual";
    EXPECT_EQ(before.norms, after.norms);
  }
  EXPECT_EQ(kSkipUnsound, skip(kInfinity));
  EXPECT_EQ(0, skip(2.9 * mean));
  for (int i = 0; i < 200; ++i) skip(8);
  const double late = step_params(step).norm_mean;
  skip(1);
  EXPECT_EQ(late + (1 - late) / 100, step_params(step).norm_mean) << "the last hundred count";
}

TEST(Adamw, GivesTheSameBitsForAnyNumberOfThreads) {
  const Tensor g = grads(DType::f32, 1);
  expect_same_bits_for_any_threads([&] {
    State s = make_state(DType::f32);
    run_adamw(s, g, params_of(1));
    return std::vector<Tensor>{s.p, s.m, s.v};
  });
}

TEST(Adamw, NaNGradientReachesTheParameter) {
  State s = make_state(DType::f32);
  Tensor g = grads(DType::f32, 1);
  set(g, 5, kNaN);
  run_adamw(s, g, params_of(1));
  EXPECT_TRUE(std::isnan(at(s.p, 5)));
  EXPECT_EQ(1, count_non_finite(s.p));
}

TEST(Adamw, RejectsWrongArguments) {
  State s = make_state(DType::f32);
  const Tensor g = grads(DType::f32, 1);
  Tensor odd({5}, DType::f32), wide({kSize + kParamBlock}, DType::f32), m64({kSize}, DType::f64);
  const Tensor step = step_tensor(params_of(1), Device::cpu), rates({3, 2}, DType::f64),
               step32({kStepParams}, DType::f32);
  Tensor none, sums({2, kBlocks + 1}, DType::f64), step_mut = step_tensor(params_of(1), Device::cpu);
  expect_error<ShapeError>({"adamw", "padded", "4096"}, [&] { adamw(odd, odd, odd, odd, s.rates, step, none); });
  expect_error<ShapeError>({"adamw", "grads"}, [&] { adamw(s.p, wide, s.m, s.v, s.rates, step, none); });
  expect_error<DTypeError>({"adamw", "m ", "f64"}, [&] { adamw(s.p, g, m64, s.v, s.rates, step, none); });
  expect_error<ShapeError>({"adamw", "v "}, [&] { adamw(s.p, g, s.m, odd, s.rates, step, none); });
  expect_error<ShapeError>({"adamw", "rates"}, [&] { adamw(s.p, g, s.m, s.v, rates, step, none); });
  expect_error<ShapeError>({"adamw", "step"}, [&] { adamw(s.p, g, s.m, s.v, s.rates, step.slice(0, 3), none); });
  expect_error<DTypeError>({"adamw", "step", "f64"}, [&] { adamw(s.p, g, s.m, s.v, s.rates, step32, none); });
  expect_error<ShapeError>({"adamw", "sums"}, [&] { adamw(s.p, g, s.m, s.v, s.rates, step, sums); });
  expect_error<ShapeError>({"adamw_begin", "sums"}, [&] { adamw_begin(g, step_mut, sums); });
  expect_error<DTypeError>({"adamw_begin", "loss"}, [&] { adamw_begin(g, step_mut, none, full({1}, DType::f32, 1)); });
}
