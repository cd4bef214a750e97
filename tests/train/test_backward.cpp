// Runs with every kind of products in the backward pass.
#include <gtest/gtest.h>

#include "tests/support/training.h"

namespace mmfree {
namespace {

RunConfig longer_run(const std::string& run_dir, ComputeChoice compute, Products backward) {
  RunConfig c = tiny_run(run_dir);
  c.train.steps = 100;
  c.train.compute = compute;
  c.train.backward = backward;
  return c;
}

/// The rounding of gradients is noise without a bias. It must not cost a twentieth of what a run learns.
TEST(Backward, EveryKindOfProductsLearns) {
  const TempDir dir;
  const RunResult exact = train(longer_run(dir / "f32", ComputeChoice::f32, Products::compute));
  const double learned = exact.first_loss - exact.valid->loss();
  ASSERT_GT(learned, 0.5);
  const RunResult eight = train(longer_run(dir / "int8", ComputeChoice::f32, Products::int8));
  const RunResult bf16 = train(longer_run(dir / "bf16", ComputeChoice::bf16, Products::compute));
  for (const RunResult& run : {eight, bf16}) {
    EXPECT_EQ(exact.first_loss, run.first_loss) << "the forward pass is the same";
    EXPECT_NE(exact.last_loss, run.last_loss) << "nothing was rounded";
    EXPECT_NEAR(exact.valid->loss(), run.valid->loss(), 0.05 * learned);
  }
}

}  // namespace
}  // namespace mmfree
