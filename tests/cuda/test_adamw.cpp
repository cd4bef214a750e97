#include "core/ops/adamw.h"
#include "tests/cuda/transfer.h"

using namespace mmfree;

namespace {

constexpr int64_t kBlocks = 37, kSize = kBlocks * kParamBlock;

struct State {
  Tensor p, m, v, rates, sums;
};

State make_state() {
  State s{random_tensor({kSize}, DType::f32, 1, 0.1), Tensor::zeros({kSize}, DType::f32),
          Tensor::zeros({kSize}, DType::f32), Tensor({kBlocks, 2}, DType::f64), Tensor({2, kBlocks}, DType::f64)};
  for (int64_t b = 0; b < kBlocks; ++b) {
    set(s.rates, 2 * b, b % 5 == 0 ? 0.3 : 1);
    set(s.rates, 2 * b + 1, b % 3 == 0 ? 0.1 : 0);
  }
  for (int64_t i = kSize - 100; i < kSize; ++i) set(s.p, i, 0);
  return s;
}

State moved(const State& s) { return {to_gpu(s.p), to_gpu(s.m), to_gpu(s.v), to_gpu(s.rates), to_gpu(s.sums)}; }

StepParams params_of(int update) {
  StepParams s;
  s.lr = 4e-3 / update;
  s.decay_factor = 1;
  s.bias1 = 1 - std::pow(s.beta1, update);
  s.bias2 = 1 - std::pow(s.beta2, update);
  s.grad_scale = 0.25 * update;
  return s;
}

Tensor grads_of(int update) {
  Tensor g = random_tensor({kSize}, DType::f32, 10 + uint32_t(update), 1e-2);
  for (int64_t i = kSize - 100; i < kSize; ++i) set(g, i, 0);
  return g;
}

void expect_same(const State& here, const State& there) {
  EXPECT_TRUE(same_bits(here.p, from_gpu(there.p))) << "values";
  EXPECT_TRUE(same_bits(here.m, from_gpu(there.m))) << "m";
  EXPECT_TRUE(same_bits(here.v, from_gpu(there.v))) << "v";
  const Tensor sums = from_gpu(there.sums);
  EXPECT_TRUE(same_bits(here.sums.slice(0, 1), sums.slice(0, 1))) << "sums of |p|";
  // Of 4,096 terms in f32, on the two devices in different orders.
  for (int64_t b = kBlocks; b < 2 * kBlocks; ++b)
    EXPECT_NEAR(at(here.sums, b), at(sums, b), 1e-5 * at(here.sums, b)) << "sums of the moments";
}

void update(State& s, const Tensor& grads, const StepParams& params) {
  adamw(s.p, grads, s.m, s.v, s.rates, step_tensor(params, s.p.device()), s.sums);
}

}  // namespace

TEST(CudaAdamw, GivesTheBitsOfTheCpu) {
  MMFREE_NEEDS_GPU();
  State here = make_state(), there = moved(here);
  for (int step = 1; step <= 5; ++step) {
    update(here, grads_of(step), params_of(step));
    update(there, to_gpu(grads_of(step)), params_of(step));
    expect_same(here, there);
  }
}

TEST(CudaAdamw, ExtremeNumbersGiveTheBitsOfTheCpu) {
  MMFREE_NEEDS_GPU();
  State here = make_state();
  Tensor g = grads_of(1);
  const double numbers[] = {0, -0.0, 1e-45, -1e-40, 1e-30, 1e-19, 1e18, -3e38, kInfinity};
  for (int64_t i = 0; i < 9 * 9; ++i) set(here.p, i, numbers[i % 9]), set(g, i, numbers[i / 9]);
  for (int64_t i = 81; i < 90; ++i) set(here.v, i, numbers[i - 81]);
  State there = moved(here);
  update(here, g, params_of(2));
  update(there, to_gpu(g), params_of(2));
  for (const auto& [a, b] : {std::pair{here.p, there.p}, {here.m, there.m}, {here.v, there.v}}) {
    const Tensor got = from_gpu(b);
    for (int64_t i = 0; i < kSize; ++i)
      ASSERT_TRUE(at(a, i) == at(got, i) || (std::isnan(at(a, i)) && std::isnan(at(got, i)))) << i;
  }
}

TEST(CudaAdamw, SkipChangesNothingButStillSums) {
  MMFREE_NEEDS_GPU();
  State here = make_state();
  const State there = moved(here);
  State after = there;
  StepParams skip = params_of(1);
  skip.skip = 1;
  const Tensor bad = full({kSize}, DType::f32, kNaN);
  update(after, to_gpu(bad), skip);
  update(here, bad, skip);
  expect_same(here, after);
  Tensor none;
  adamw(after.p, to_gpu(bad), after.m, after.v, after.rates, step_tensor(skip, Device::cuda), none);
  expect_same(here, after);
}

TEST(CudaAdamw, WorksWithoutSums) {
  MMFREE_NEEDS_GPU();
  State here = make_state(), there = moved(here);
  Tensor none;
  const Tensor g = grads_of(1);
  adamw(here.p, g, here.m, here.v, here.rates, step_tensor(params_of(1), Device::cpu), none);
  adamw(there.p, to_gpu(g), there.m, there.v, there.rates, step_tensor(params_of(1), Device::cuda), none);
  EXPECT_TRUE(same_bits(here.p, from_gpu(there.p)));
}

TEST(CudaAdamw, BeginPreparesTheStep) {
  MMFREE_NEEDS_GPU();
  for (double clip : {0.0, 1.0, 1e6}) {
    StepParams params;
    params.clip = clip;
    Tensor here = step_tensor(params, Device::cpu), there = step_tensor(params, Device::cuda);
    for (int update = 1; update <= 3; ++update) {
      adamw_begin(grads_of(update), here);
      adamw_begin(to_gpu(grads_of(update)), there);
      const StepParams a = step_params(here), b = step_params(there);
      // The CPU squares and adds up to 256 terms in f32, the GPU in f64.
      EXPECT_NEAR(a.grad_norm, b.grad_norm, 1e-5 * a.grad_norm);
      EXPECT_NEAR(a.grad_scale, b.grad_scale, 1e-5 * a.grad_scale);
      EXPECT_EQ(update, b.updates);
      // pow of two libraries, each with an error of an ulp or two of 1.
      EXPECT_NEAR(a.bias1, b.bias1, 1e-15);
      EXPECT_NEAR(a.bias2, b.bias2, 1e-15);
      EXPECT_EQ(0, b.skip);
    }
    for (Tensor* step : {&here, &there}) {  // the norms until now are alike: half of one is usual, all of it not
      StepParams p = step_params(*step);
      p.outlier = 0.75, p.norms = kNormsNeeded, p.norm_mean = 16;
      *step = step_tensor(p, step->device());
    }
    for (const double norm : {8.0, 16.0}) {
      Tensor g = Tensor::zeros({kSize}, DType::f32);
      set(g, 5, norm);
      adamw_begin(g, here);
      adamw_begin(to_gpu(g), there);
      const StepParams a = step_params(here), b = step_params(there);
      EXPECT_EQ(norm == 16 ? kSkipOutlier : 0, b.skip);
      EXPECT_EQ(a.skip, b.skip);
      EXPECT_EQ(a.norm_mean, b.norm_mean);
      EXPECT_EQ(a.norms, b.norms);
    }
    const StepParams before = step_params(there);
    Tensor bad = grads_of(4);
    set(bad, kSize / 2, kInfinity);
    adamw_begin(to_gpu(bad), there);
    const StepParams after = step_params(there);
    EXPECT_EQ(1, after.skip);
    EXPECT_EQ(before.updates, after.updates);
    EXPECT_EQ(before.bias1, after.bias1);
    adamw_begin(to_gpu(grads_of(5)), there);
    EXPECT_EQ(0, step_params(there).skip);
  }
}

TEST(CudaAdamw, BeginHeedsTheSumsAndTheLoss) {
  MMFREE_NEEDS_GPU();
  const Tensor g = to_gpu(grads_of(1));
  StepParams skip_params;
  skip_params.skip = 1;
  const auto skips = [&](State here, double loss) {
    State there = moved(here);
    update(there, g, skip_params);
    Tensor step = step_tensor(params_of(1), Device::cuda);
    adamw_begin(g, step, there.sums, to_gpu(full({1}, DType::f64, loss)));
    return step_params(step).skip != 0;
  };
  const State good = make_state();
  EXPECT_FALSE(skips(good, 3));
  for (double bad : {kNaN, kInfinity, -kInfinity}) {
    EXPECT_TRUE(skips(good, bad));
    for (Tensor State::*tensor : {&State::p, &State::m, &State::v}) {
      State s = good;
      s.*tensor = (good.*tensor).clone();
      set(s.*tensor, kSize / 3, bad);
      EXPECT_TRUE(skips(s, 3)) << bad;
    }
  }
  for (const auto& [size, skip] : {std::pair{0.9, false}, {1.1, true}}) {
    State large = good;
    large.m = good.m.clone();
    set(large.m, 7, size * kMostNorm);
    EXPECT_EQ(skip, skips(large, 3));
  }
}
