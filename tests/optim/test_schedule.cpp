// Rates and decays at the corners of every schedule.
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "optim/schedule.h"

namespace mmfree {
namespace {

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

TEST(Schedule, MatchesValuesComputedByHand) {
  OptimConfig c;
  c.lr = 0.4;
  c.min_lr_ratio = 0.1;
  c.warmup_steps = 10;
  EXPECT_DOUBLE_EQ(learning_rate(c, 1, 110), 0.04);
  EXPECT_DOUBLE_EQ(learning_rate(c, 5, 110), 0.2);
  EXPECT_DOUBLE_EQ(learning_rate(c, 10, 110), 0.4);
  // cos(π/3) = 1/2 at 33.3 %, cos(π/2) = 0 at half, with floor 0.04: 0.04 + 0.36·(1 + cos)/2.
  EXPECT_NEAR(learning_rate(c, 60, 110), 0.22, 1e-15);
  EXPECT_NEAR(learning_rate(c, 40, 100), 0.31, 1e-15);
  EXPECT_DOUBLE_EQ(learning_rate(c, 110, 110), 0.04);
  EXPECT_DOUBLE_EQ(learning_rate(c, 500, 110), 0.04);
  c.schedule = Schedule::constant;
  EXPECT_DOUBLE_EQ(learning_rate(c, 5, 110), 0.2);
  EXPECT_EQ(learning_rate(c, 110, 110), 0.4);
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

/// Peak 2, down to 0.5, of 20 steps 4 for warm-up.
OptimConfig twenty_steps(Schedule schedule) {
  OptimConfig c;
  c.lr = 2;
  c.min_lr_ratio = 0.25;
  c.warmup_steps = 4;
  c.schedule = schedule;
  return c;
}

TEST(Schedule, FallsAlongALine) {
  const OptimConfig c = twenty_steps(Schedule::linear);
  EXPECT_EQ(learning_rate(c, 2, 20), 1);
  EXPECT_EQ(learning_rate(c, 4, 20), 2);
  EXPECT_DOUBLE_EQ(learning_rate(c, 5, 20), 1.90625);
  EXPECT_DOUBLE_EQ(learning_rate(c, 12, 20), 1.25);
  EXPECT_DOUBLE_EQ(learning_rate(c, 20, 20), 0.5);
  EXPECT_DOUBLE_EQ(learning_rate(c, 25, 20), 0.5);
}

TEST(Schedule, StaysStableThenDecays) {
  OptimConfig c = twenty_steps(Schedule::wsd);
  c.decay_fraction = 0.25;
  EXPECT_EQ(learning_rate(c, 3, 20), 1.5);
  for (int64_t step = 4; step <= 15; ++step) EXPECT_EQ(learning_rate(c, step, 20), 2) << step;
  EXPECT_DOUBLE_EQ(learning_rate(c, 16, 20), 1.7);
  EXPECT_DOUBLE_EQ(learning_rate(c, 18, 20), 1.1);
  EXPECT_DOUBLE_EQ(learning_rate(c, 20, 20), 0.5);
  c.decay_fraction = 1;
  for (int64_t step = 1; step <= 20; ++step)
    EXPECT_DOUBLE_EQ(learning_rate(c, step, 20), learning_rate(twenty_steps(Schedule::linear), step, 20)) << step;
  c = OptimConfig{};
  c.schedule = Schedule::wsd;
  EXPECT_EQ(learning_rate(c, 80, 100), c.lr) << "the last 20 % by default";
  EXPECT_LT(learning_rate(c, 81, 100), c.lr);
}

TEST(Schedule, DropsToASecondPhase) {
  OptimConfig c = twenty_steps(Schedule::two_phase);
  EXPECT_EQ(learning_rate(c, 1, 20), 0.5);
  EXPECT_DOUBLE_EQ(learning_rate(c, 10, 20), 1.4375);
  EXPECT_DOUBLE_EQ(learning_rate(c, 11, 20), 0.9125);
  EXPECT_DOUBLE_EQ(learning_rate(c, 20, 20), 0.5);
  // BitNet b1.58 2B4T: from 1.5e-3 to about 8e-4, then from 5e-4 to 0; weight decay 0.1, then none.
  c = OptimConfig{};
  c.lr = 1.5e-3;
  c.warmup_steps = 0;
  c.weight_decay_until = 1;
  c.schedule = Schedule::two_phase;
  EXPECT_NEAR(learning_rate(c, 1, 100000), 1.5e-3, 1e-7);
  EXPECT_NEAR(learning_rate(c, 50000, 100000), 7.5e-4, 1e-12);
  EXPECT_NEAR(learning_rate(c, 50001, 100000), 5e-4, 2e-8);
  EXPECT_NEAR(learning_rate(c, 75000, 100000), 2.5e-4, 1e-12);
  EXPECT_EQ(learning_rate(c, 100000, 100000), 0);
  EXPECT_EQ(decay_factor(c, 50000, 100000), 1);
  EXPECT_EQ(decay_factor(c, 50001, 100000), 0);
  c.phase_fraction = 0.8;
  EXPECT_EQ(decay_factor(c, 80000, 100000), 1);
  EXPECT_EQ(decay_factor(c, 80001, 100000), 0);
  c.weight_decay_until = 0.25;
  EXPECT_EQ(decay_factor(c, 25001, 100000), 0);
}

TEST(Schedule, AllButConstantEndAtZeroByDefault) {
  for (Schedule schedule : {Schedule::linear, Schedule::cosine, Schedule::wsd, Schedule::two_phase}) {
    OptimConfig c;
    c.schedule = schedule;
    EXPECT_NEAR(learning_rate(c, 1000, 1000), 0, 1e-18) << name_of(schedule);
    EXPECT_GT(learning_rate(c, 999, 1000), 0) << name_of(schedule);
    for (int64_t step = 21; step <= 1000; ++step)
      EXPECT_LE(learning_rate(c, step, 1000), learning_rate(c, step - 1, 1000)) << name_of(schedule) << ' ' << step;
  }
}

TEST(Schedule, DecayEndsHalfWay) {
  OptimConfig c;
  EXPECT_EQ(decay_factor(c, 10, 20), 1);
  EXPECT_EQ(decay_factor(c, 11, 20), 0);
  c.weight_decay_until = 1;
  EXPECT_EQ(decay_factor(c, 20, 20), 1);
  c.weight_decay_until = 0;
  EXPECT_EQ(decay_factor(c, 1, 20), 0);
}

}  // namespace
}  // namespace mmfree
