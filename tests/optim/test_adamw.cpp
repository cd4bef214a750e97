// AdamW against a plain implementation in double.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/rng.h"
#include "optim/adamw.h"
#include "optim/schedule.h"
#include "tests/support/compare.h"

namespace mmfree {
namespace {

std::vector<ParamSpec> specs() {
  return {{"matrix", {71, 67}, {Init::normal, 1}, ParamRole::matrix},
          {"vector", {5}, {Init::normal, 1}, ParamRole::vector}};
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
        p[i][k] -= lr * (params.specs()[i].role == ParamRole::matrix ? decay : 0) * p[i][k] +
                   lr * mh / (std::sqrt(vh) + config.eps);
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
        const double norm =
            reference.update(params, learning_rate(c, step, 8), c.weight_decay * decay_factor(c, step, 8));
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
    optimizer.measure();
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

TEST(AdamW, NoticesWhatAnUpdateSpoiled) {
  OptimConfig c;
  c.lr = 10;
  c.weight_decay = 10;
  c.warmup_steps = 0;
  ParamStore params(specs(), DType::f32);
  params.initialise(1);
  params.view(params.values(), 0).mut<float>()[3] = 1e38f;  // times 1 - lr·weight_decay = -99
  AdamW optimizer(params, c);
  fill_gradients(params, 1, 1);
  EXPECT_FALSE(update(optimizer, 1, 10).skipped);
  ASSERT_FALSE(std::isfinite(params.values().data<float>()[3]));
  const Tensor p = params.values().clone();
  for (int64_t step = 2; step < 4; ++step) {
    fill_gradients(params, step, 1);
    EXPECT_TRUE(update(optimizer, step, 10).skipped);
  }
  EXPECT_TRUE(same_bits(params.values(), p));
}

TEST(AdamW, LooksAtWhatItGoesOnFrom) {
  for (const bool bad : {false, true}) {
    ParamStore params(specs(), DType::f32);
    params.initialise(1);
    AdamW optimizer(params, OptimConfig{});
    fill_gradients(params, 1, 1);
    update(optimizer, 1, 10);
    optimizer.m().mut<float>()[2] = bad ? 1e30f : 1.0f;
    optimizer.set_updates(7);
    EXPECT_EQ(bad, update(optimizer, 2, 10).skipped);
  }
}

TEST(AdamW, StatesAreNamed) {
  ParamStore params(specs(), DType::f32);
  const auto optimizer = make_optimizer(params, OptimConfig{});
  const std::vector<OptimizerState> states = optimizer->states();
  ASSERT_EQ(states.size(), 2u);
  EXPECT_EQ(states[0].name, "adam_m");
  EXPECT_EQ(states[1].name, "adam_v");
  for (const OptimizerState& s : states) EXPECT_EQ(s.tensor.shape(), params.values().shape());
  params.initialise(1);
  fill_gradients(params, 1, 1);
  optimizer->begin_step(1, 10);
  optimizer->update();
  // One update from zeros: m = (1 - 0.9) g, v = (1 - 0.95) g².
  const double clip = 1 / (optimizer->report().grad_norm + 1e-6);
  const double g = double(params.grads().data<float>()[0]) * clip;
  EXPECT_NEAR(0.1 * g, states[0].tensor.data<float>()[0], 1e-6 * std::abs(g));
  EXPECT_NEAR(0.05 * g * g, states[1].tensor.data<float>()[0], 1e-6 * g * g);
}

}  // namespace
}  // namespace mmfree
