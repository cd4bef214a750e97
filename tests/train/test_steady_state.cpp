// Steps on the CPU ask the system for no memory once two have been made. In f64, where no product is oneDNN's: that
// takes memory for packed operands from the heap in each call.
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <mutex>

#include "layers/parameters.h"
#include "optim/adamw.h"
#include "tests/support/interpose.h"
#include "tests/support/tensors.h"
#include "tests/support/tiny_run.h"
#include "train/run/step.h"

namespace mmfree {
namespace {

/// Counts allocations from the heap, and those of a size that a model's data could have.
class Allocations : public interpose::Watch {
 public:
  static constexpr size_t kLarge = 16 << 10;
  Allocations() { interpose::set_watch(this); }
  ~Allocations() override { interpose::set_watch(nullptr); }
  interpose::Verdict before(const interpose::Call& call) override {
    if (call.op == interpose::Op::allocate) ++all, large += call.size >= kLarge;
    return {};
  }
  std::atomic<int64_t> all = 0, large = 0;
};

class SteadyState : public testing::TestWithParam<Products> {};

TEST_P(SteadyState, AllocatesNothingAfterTheSecondStep) {
  const TempDir dir;
  RunConfig c = tiny_run(dir / "run");
  c.model.hidden_size = 128;  // 512 rows a step: activations of 256 KiB
  c.model.intermediate_size = 256;
  c.model.vocab_size = 512;
  c.train.batch_size = 8;
  c.data.seq_len = 64;
  for (Recompute recompute : kAllRecomputes) {
    SCOPED_TRACE(name_of(recompute));
    const auto arena = Arena::host();
    const ArenaScope scope(arena);
    ParamStore params(parameter_specs(c.model), DType::f64);
    params.initialise(1);
    LM lm(params, c.model, DType::f64, {GetParam(), Products::compute});
    AdamW optimizer(params, c.optim);
    StepRunner runner(lm, params, optimizer, c, recompute);
    runner.ids().copy_from(random_ids(runner.ids().size(), c.model.vocab_size, uint64_t(1)));
    runner.targets().copy_from(random_ids(runner.targets().size(), c.model.vocab_size, uint64_t(2)));
    std::vector<int64_t> all;
    ArenaStats settled;
    for (int64_t step = 0; step < 5; ++step) {
      const Allocations seen;
      runner.launch(step, runner.ids().size());
      EXPECT_TRUE(runner.collect());
      if (step == 1) settled = arena->stats();
      if (step < 2) continue;
      EXPECT_EQ(0, seen.large) << "step " << step;
      all.push_back(seen.all);
      EXPECT_EQ(settled.reserved, arena->stats().reserved);
      EXPECT_EQ(settled.slabs, arena->stats().slabs);
      EXPECT_EQ(settled.live, arena->stats().live);
      EXPECT_EQ(settled.peak, arena->stats().peak);
    }
    // Small objects, such as nodes of the tape, are as many in each step, but for what a thread sets up at its first
    // item.
    EXPECT_NEAR(double(all[0]), double(all[2]), 8);
  }
}

INSTANTIATE_TEST_SUITE_P(Products, SteadyState, testing::Values(Products::compute, Products::int8),
                         [](const auto& info) { return name_of(info.param); });

}  // namespace
}  // namespace mmfree
