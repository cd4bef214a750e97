#include <gtest/gtest.h>

#include "core/error.h"
#include "tests/support/tensors.h"
#include "train/background_save.h"

namespace mmfree {
namespace {

TEST(BackgroundSave, OnTheCpuWritesTheVeryTensorsBeforeTrainingGoesOn) {
  BackgroundSave saving;
  const FlatState state{full({3}, DType::f32, 1), full({3}, DType::f32, 2), full({3}, DType::f32, 3)};
  for (int time = 0; time < 3; ++time) {
    bool written = false;
    saving.start(state, [&](const FlatState& s) {
      EXPECT_EQ(state.values.raw(), s.values.raw());
      EXPECT_EQ(state.m.raw(), s.m.raw());
      EXPECT_EQ(state.v.raw(), s.v.raw());
      written = true;
    });
    EXPECT_TRUE(written);
  }
  saving.wait();
  saving.wait();
}

TEST(BackgroundSave, PassesOnWhatWritingThrows) {
  BackgroundSave saving;
  const FlatState state{full({3}, DType::f32, 1), {}, {}};
  EXPECT_THROW(saving.start(state, [](const FlatState&) { throw CreateError("disk"); }), CreateError);
  saving.wait();
  saving.start(state, [](const FlatState&) {});
}

}  // namespace
}  // namespace mmfree
