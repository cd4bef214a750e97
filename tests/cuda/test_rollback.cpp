// A run on a GPU that diverges in a recorded step, whose result the host reads when the next one is under way already.
#include <gtest/gtest.h>

#include "tests/support/gpu.h"
#include "tests/support/training.h"
#include "tests/support/unsteady.h"

namespace mmfree {
namespace {

constexpr int64_t kSteps = kUnsteadySteps;

/// In f32, where the gradients that are outliers are the CPU's, if `same`.
RunConfig on_gpu(RunConfig c, bool same) {
  c.train.device.kind = DeviceChoice::cuda;
  c.train.compute = same ? ComputeChoice::f32 : ComputeChoice::automatic;
  c.train.backward = Products::compute;
  return c;
}

LoopState state_at(const std::string& run_dir, int64_t step) {
  return Checkpoint(checkpoint_path(run_dir, step)).state();
}

/// In processes that make one step each, none of which is recorded.
void train_in_pieces(RunConfig c) {
  c.train.resume = {ResumeFrom::newest_if_any};
  c.train.max_time = 1e-9;
  text_of([&] {
    int starts = 0;
    while (!train(c).finished && ++starts < 1000) {
    }
  });
}

TEST(CudaRollback, OfRecordedStepsLeavesOutTheDataAndMakesAllSteps) {
  MMFREE_NEEDS_GPU();
  const TempDir dir;
  const RunConfig c = on_gpu(unsteady_run(dir, dir / "run"), true);
  const std::string said = text_of([&] { EXPECT_TRUE(train(c).finished); });
  EXPECT_TRUE(contains(said, "step 31: 2 steps in a row were skipped: the run diverges and goes back to " +
                                 checkpoint_path(dir / "run", 28)))
      << said;
  EXPECT_TRUE(contains(said, "the data of the steps from 29 to 31 are left out (rollback 1 of 5)")) << said;
  const LoopState end = state_at(dir / "run", kSteps);
  EXPECT_EQ(2, end.rollbacks);
  EXPECT_EQ(4 * (3 + 4), end.left_out);
  EXPECT_EQ(kSteps * 4 * 17, end.tokens) << "the step behind the one that was given up does not count";
  EXPECT_EQ(kSteps, end.updates);
  int64_t step = 0;
  for (const auto& row : timeless_metrics(dir / "run")) {
    if (!row.contains("train/loss")) continue;
    EXPECT_EQ(++step, row["step"].get<int64_t>());
  }
  EXPECT_EQ(kSteps, step);
}

/// What a recorded step keeps on the device must go back with the run: parameters, moments and their sums, counts of
/// updates, the mean of gradient norms, and what rows carry.
TEST(CudaRollback, OfRecordedStepsIsThatOfARunThatIsCutAfterEachStep) {
  MMFREE_NEEDS_GPU();
  const TempDir dir;
  for (const auto& [name, same, carry, micro] :
       {std::tuple{"f32", true, false, 0}, {"carry", true, true, 2}, {"bf16", false, false, 2}}) {
    SCOPED_TRACE(name);
    const TempDir data;
    RunConfig whole = on_gpu(unsteady_run(data, dir / concat("whole-", name), carry), same), cut;
    if (!same) whole.train.skip_outliers = 4, whole.train.rollback = 20;  // norms vary more, so more steps are outliers
    whole.train.micro_batch_size = micro;
    cut = whole;
    cut.train.run_dir = dir / concat("cut-", name);
    text_of([&] { EXPECT_TRUE(train(whole).finished); });
    train_in_pieces(cut);
    const LoopState end = state_at(whole.train.run_dir, kSteps);
    EXPECT_GE(end.rollbacks, 1) << "or the test tests nothing";
    EXPECT_EQ(to_json(end), to_json(state_at(cut.train.run_dir, kSteps)));
    EXPECT_EQ(learned(checkpoint_path(whole.train.run_dir, kSteps)),
              learned(checkpoint_path(cut.train.run_dir, kSteps)));
    EXPECT_EQ(timeless_metrics(whole.train.run_dir), timeless_metrics(cut.train.run_dir));
  }
}

TEST(CudaRollback, OfRecordedStepsIsTheRunWithoutTheseData) {
  MMFREE_NEEDS_GPU();
  const TempDir dir;
  RunConfig c = on_gpu(unsteady_run(dir, dir / "run"), true);
  c.train.steps = 36;
  c.train.keep_last = 100;
  text_of([&] { EXPECT_TRUE(train(c).finished); });
  EXPECT_EQ(1, state_at(dir / "run", 36).rollbacks);
  RunConfig good = without_first_bad_batches(c, dir);
  train(good);
  EXPECT_EQ(learned(checkpoint_path(dir / "run", 36)), learned(checkpoint_path(dir / "good", 36)));
}

}  // namespace
}  // namespace mmfree
