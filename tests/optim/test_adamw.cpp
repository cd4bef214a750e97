// AdamW and its schedules against a plain implementation in double.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numbers>

#include "core/rng.h"
#include "optim/adamw.h"
#include "optim/schedule.h"
#include "tests/support/compare.h"

namespace mmfree {
namespace {

std::vector<ParamSpec> specs() {
  return {{"matrix", {71, 67}, {Init::normal, 1}, true}, {"vector", {5}, {Init::normal, 1}, false}};
}

/// Gradients of step `step`, of size about `scale`.
void fill_gradients(ParamStore& params, int64_t step, double scale) {
  params.begin_gradients();
  for (size_t i = 0; i < params.specs().size(); ++i) {
    const RandomStream random(9, uint64_t(step), params.specs()[i].name);
    Tensor g = params.view(params.grads(), i);
    dispatch_float(g.dtype(), "test", [&]<class T>() {
      for (int64_t k = 0; k < g.size(); ++k) g.mut<T>()[k] = T(scale * random.normal(uint64_t(k)));
    });
  }
}

/// The textbook, one number at a time.
struct Reference {
  OptimConfig config;
  std::vector<std::vector<double>> p, m, v;
  int64_t updates = 0;

  explicit Reference(ParamStore& params, const OptimConfig& c) : config(c) {
    for (size_t i = 0; i < params.specs().size(); ++i) {
      const Tensor t = as_f64(params.view(params.values(), i));
      p.emplace_back(t.data<double>(), t.data<double>() + t.size());
      m.emplace_back(t.size(), 0.0), v.emplace_back(t.size(), 0.0);
    }
  }
  double update(ParamStore& params, double lr, double decay) {
    double square = 0;
    for (size_t i = 0; i < p.size(); ++i) {
      const Tensor g = as_f64(params.view(params.grads(), i));
      for (int64_t k = 0; k < g.size(); ++k) square += g.data<double>()[k] * g.data<double>()[k];
    }
    const double norm = std::sqrt(square),
                 clip = config.clip_grad > 0 ? std::min(1.0, config.clip_grad / (norm + 1e-6)) : 1;
    ++updates;
    for (size_t i = 0; i < p.size(); ++i) {
      const Tensor g = as_f64(params.view(params.grads(), i));
      for (size_t k = 0; k < p[i].size(); ++k) {
        const double x = g.data<double>()[k] * clip, b1 = config.betas[0], b2 = config.betas[1];
        m[i][k] = b1 * m[i][k] + (1 - b1) * x;
        v[i][k] = b2 * v[i][k] + (1 - b2) * x * x;
        const double mh = m[i][k] / (1 - std::pow(b1, double(updates))),
                     vh = v[i][k] / (1 - std::pow(b2, double(updates)));
        p[i][k] -= lr * (params.specs()[i].decay ? decay : 0) * p[i][k] + lr * mh / (std::sqrt(vh) + config.eps);
      }
    }
    return norm;
  }
};

StepReport update(AdamW& optimizer, int64_t step, int64_t steps) {
  optimizer.begin_step(step, steps);
  optimizer.update();
  return optimizer.report();
}

void expect_near(ParamStore& params, const Tensor& flat, const std::vector<std::vector<double>>& expected,
                 double tolerance) {
  for (size_t i = 0; i < expected.size(); ++i) {
    const Tensor got = as_f64(params.view(flat, i));
    for (size_t k = 0; k < expected[i].size(); ++k)
      ASSERT_NEAR(got.data<double>()[k], expected[i][k], tolerance * (1 + std::abs(expected[i][k])))
          << params.specs()[i].name << ' ' << k;
  }
}

TEST(AdamW, FollowsTheTextbook) {
  for (const DType type : {DType::f32, DType::f64})
    for (const double clip : {0.0, 1.0, 1e9}) {
      SCOPED_TRACE(concat(name_of(type), " clip ", clip));
      OptimConfig c;
      c.lr = 0.02;
      c.clip_grad = clip;
      c.eps = 1e-3;
      c.warmup_steps = 2;
      ParamStore params(specs(), type);
      params.initialise(1);
      AdamW optimizer(params, c);
      Reference reference(params, c);
      for (int64_t step = 1; step <= 8; ++step) {
        fill_gradients(params, step, step % 2 ? 1.0 : 1e-3);
        const StepReport report = update(optimizer, step, 8);
        const double norm = reference.update(params, learning_rate(c, step, 8), weight_decay(c, step, 8));
        EXPECT_NEAR(report.grad_norm, norm, 1e-6 * norm);
        EXPECT_EQ(report.learning_rate, learning_rate(c, step, 8));
        EXPECT_FALSE(report.skipped);
        EXPECT_EQ(optimizer.updates(), step);
      }
      const double tolerance = type == DType::f64 ? 1e-13 : 1e-5;
      expect_near(params, params.values(), reference.p, tolerance);
      expect_near(params, optimizer.m(), reference.m, tolerance);
      expect_near(params, optimizer.v(), reference.v, tolerance);
    }
}

TEST(AdamW, PaddingStaysZero) {
  ParamStore params(specs(), DType::f32);
  params.initialise(1);
  AdamW optimizer(params, OptimConfig{});
  for (int64_t step = 1; step <= 3; ++step) fill_gradients(params, step, 1), update(optimizer, step, 3);
  double in_parameters = 0, in_all = 0;
  for (size_t i = 0; i < specs().size(); ++i) {
    const Tensor t = params.view(params.values(), i);
    for (int64_t k = 0; k < t.size(); ++k) in_parameters += t.data<float>()[k] != 0;
  }
  for (int64_t k = 0; k < params.values().size(); ++k) in_all += params.values().data<float>()[k] != 0;
  EXPECT_EQ(in_parameters, in_all);
}

TEST(AdamW, ANonFiniteGradientChangesNothing) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()}) {
    ParamStore params(specs(), DType::f32);
    params.initialise(1);
    AdamW optimizer(params, OptimConfig{});
    fill_gradients(params, 1, 1);
    update(optimizer, 1, 10);
    const Tensor p = params.values().clone(), m = optimizer.m().clone(), v = optimizer.v().clone();
    fill_gradients(params, 2, 1);
    params.view(params.grads(), 1).mut<float>()[4] = bad;
    const StepReport report = update(optimizer, 2, 10);
    EXPECT_TRUE(report.skipped);
    EXPECT_FALSE(std::isfinite(report.grad_norm));
    EXPECT_EQ(optimizer.updates(), 1);
    EXPECT_TRUE(same_bits(params.values(), p));
    EXPECT_TRUE(same_bits(optimizer.m(), m));
    EXPECT_TRUE(same_bits(optimizer.v(), v));
    fill_gradients(params, 3, 1);
    EXPECT_FALSE(update(optimizer, 3, 10).skipped);
    EXPECT_EQ(optimizer.updates(), 2);
  }
}

TEST(AdamW, AnythingElseThatIsNotFiniteChangesNothingEither) {
  for (const std::string what : {"values", "m", "v", "loss"}) {
    ParamStore params(specs(), DType::f32);
    params.initialise(1);
    AdamW optimizer(params, OptimConfig{});
    fill_gradients(params, 1, 1);
    update(optimizer, 1, 10);
    Tensor loss = Tensor::zeros({1}, DType::f64);
    if (what == "loss")
      *loss.mut<double>() = std::numeric_limits<double>::quiet_NaN();
    else
      params.view(what == "values" ? params.values()
                  : what == "m"    ? optimizer.m()
                                   : optimizer.v(),
                  1)
          .mut<float>()[4] = std::numeric_limits<float>::quiet_NaN();
    const Tensor p = params.values().clone(), m = optimizer.m().clone(), v = optimizer.v().clone();
    fill_gradients(params, 2, 1);
    optimizer.begin_step(2, 10);
    optimizer.update(loss);
    EXPECT_TRUE(optimizer.report().skipped) << what;
    EXPECT_EQ(optimizer.updates(), 1) << what;
    EXPECT_TRUE(same_bits(params.values(), p) && same_bits(optimizer.m(), m) && same_bits(optimizer.v(), v)) << what;
  }
}

TEST(AdamW, ContinuesFromMomentsAndUpdates) {
  ParamStore a(specs(), DType::f32), b(specs(), DType::f32);
  a.initialise(1);
  AdamW first(a, OptimConfig{}), second(b, OptimConfig{});
  for (int64_t step = 1; step <= 3; ++step) fill_gradients(a, step, 1), update(first, step, 6);
  for (auto [to, from] : {std::pair{b.values(), a.values()}, {second.m(), first.m()}, {second.v(), first.v()}})
    std::memcpy(to.raw_mut(), from.raw(), size_t(to.bytes()));
  second.set_updates(first.updates());
  for (int64_t step = 4; step <= 6; ++step) {
    fill_gradients(a, step, 1), update(first, step, 6);
    fill_gradients(b, step, 1), update(second, step, 6);
  }
  EXPECT_TRUE(same_bits(a.values(), b.values()));
}

TEST(Schedule, WarmsUpThenFallsAlongACosine) {
  OptimConfig c;
  c.lr = 2;
  c.min_lr_ratio = 0.25;
  c.warmup_steps = 4;
  for (int64_t step = 1; step <= 4; ++step) EXPECT_DOUBLE_EQ(learning_rate(c, step, 20), 2.0 * double(step) / 4);
  EXPECT_NEAR(learning_rate(c, 12, 20), 2 * (0.25 + 0.75 / 2), 1e-15);
  EXPECT_NEAR(learning_rate(c, 8, 20), 2 * (0.25 + 0.75 * 0.5 * (1 + std::cos(std::numbers::pi / 4))), 1e-15);
  EXPECT_DOUBLE_EQ(learning_rate(c, 20, 20), 0.5);
  EXPECT_DOUBLE_EQ(learning_rate(c, 25, 20), 0.5);
  for (int64_t step = 5; step <= 20; ++step) EXPECT_LT(learning_rate(c, step, 20), learning_rate(c, step - 1, 20));
  c.schedule = Schedule::constant;
  EXPECT_EQ(learning_rate(c, 2, 20), 1);
  EXPECT_EQ(learning_rate(c, 20, 20), 2);
  c.warmup_steps = 0;
  EXPECT_EQ(learning_rate(c, 1, 20), 2);
}

TEST(Schedule, WarmUpDefaultsToTwoPercent) {
  OptimConfig c;
  EXPECT_EQ(warmup_steps(c, 600), 12);
  EXPECT_EQ(warmup_steps(c, 49), 0);
  c.warmup_steps = 7;
  EXPECT_EQ(warmup_steps(c, 600), 7);
  c.warmup_steps = 30;  // longer than the run
  EXPECT_DOUBLE_EQ(learning_rate(c, 20, 20), c.lr * 20 / 30);
}

TEST(Schedule, DecayEndsHalfWay) {
  OptimConfig c;
  EXPECT_EQ(weight_decay(c, 10, 20), 0.1);
  EXPECT_EQ(weight_decay(c, 11, 20), 0.0);
  c.weight_decay_until = 1;
  EXPECT_EQ(weight_decay(c, 20, 20), 0.1);
  c.weight_decay_until = 0;
  EXPECT_EQ(weight_decay(c, 1, 20), 0.0);
}

}  // namespace
}  // namespace mmfree
