#include <gtest/gtest.h>
#include <pthread.h>

#include <atomic>
#include <new>

#include "core/error.h"
#include "tests/support/tensors.h"
#include "train/run/background_save.h"

namespace mmfree {
namespace {

TEST(BackgroundSave, WritesTheStateOfTheMomentWhileTrainingChangesIt) {
  BackgroundSave saving;
  FlatState state{full({3}, DType::f32, 1), {{"m", full({3}, DType::f32, 2)}, {"v", full({3}, DType::f32, 3)}}};
  state.carried = DecodeState(2);
  Tensor& carried = state.carried.layer(1).at(0) = full({2, 3}, DType::f32, 4);
  for (int time = 0; time < 3; ++time) {
    std::atomic<bool> changed = false;
    float seen = 0, seen_carried = 0;
    carried.mut<float>()[5] = 10 + float(time);
    state.values.mut<float>()[2] = float(time);
    saving.start(state, [&](const FlatState& s) {
      while (!changed) std::this_thread::yield();
      seen = s.values.data<float>()[2];
      s.carried.for_each([&](int64_t, size_t, const Tensor& t) { seen_carried = t.data<float>()[5]; });
      EXPECT_EQ(s.states[0].name, "m");
      EXPECT_EQ(s.states[0].tensor.data<float>()[0], 2);
      EXPECT_EQ(s.states[1].tensor.data<float>()[0], 3);
    });
    EXPECT_TRUE(saving.pending());
    EXPECT_FALSE(saving.poll());
    state.values.mut<float>()[2] = -1;
    carried.mut<float>()[5] = -1;
    changed = true;
    if (time == 0)
      saving.wait();
    else
      while (!saving.poll()) std::this_thread::yield();
    EXPECT_FALSE(saving.pending());
    EXPECT_EQ(seen, float(time));
    EXPECT_EQ(seen_carried, 10 + float(time));
  }
  saving.wait();
  EXPECT_FALSE(saving.poll());
}

TEST(BackgroundSave, TrainingWaitsWhereThereIsNoRoomForACopy) {
  // Memory of the dry kind: a size that no machine has, and that is never touched.
  const size_t bytes = available_host_memory() / 4;
  ASSERT_GT(bytes, 0u);
  const Tensor huge({int64_t(bytes / sizeof(float))}, DType::f32);
  BackgroundSave saving;
  const void* seen = nullptr;
  saving.start({huge, {{"m", huge}, {"v", huge}}}, [&](const FlatState& s) { seen = s.values.raw(); });
  EXPECT_EQ(seen, huge.raw());
  EXPECT_FALSE(saving.pending());
}

/// While alive, the system has no stack for a new thread.
class NoThreads {
 public:
  NoThreads() {
    pthread_getattr_default_np(&before_);
    pthread_attr_t huge;
    pthread_attr_init(&huge);
    pthread_attr_setstacksize(&huge, size_t(1) << 46);
    pthread_setattr_default_np(&huge);
    pthread_attr_destroy(&huge);
  }
  ~NoThreads() {
    pthread_setattr_default_np(&before_);
    pthread_attr_destroy(&before_);
  }
  NoThreads(const NoThreads&) = delete;

 private:
  pthread_attr_t before_;
};

TEST(BackgroundSave, TrainingWaitsWhereThereIsNoThread) {
  BackgroundSave saving;
  const FlatState state{full({3}, DType::f32, 1), {}};
  const void* seen = nullptr;
  const NoThreads none;
  saving.start(state, [&](const FlatState& s) { seen = s.values.raw(); });
  EXPECT_EQ(seen, state.values.raw());
  EXPECT_FALSE(saving.pending());
  EXPECT_THROW(saving.start(state, [](const FlatState&) { throw std::bad_alloc(); }), OutOfMemory);
  EXPECT_FALSE(saving.pending());
}

TEST(BackgroundSave, PassesOnWhatWritingThrows) {
  BackgroundSave saving;
  const FlatState state{full({3}, DType::f32, 1), {}};
  saving.start(state, [](const FlatState&) { throw CreateError("disk"); });
  EXPECT_THROW(saving.wait(), CreateError);
  saving.wait();
  saving.start(state, [](const FlatState&) { throw CreateError("disk"); });
  EXPECT_THROW(while (!saving.poll()) std::this_thread::yield(), CreateError);
  EXPECT_FALSE(saving.poll());
  saving.start(state, [](const FlatState&) { throw std::bad_alloc(); });
  EXPECT_THROW(saving.wait(), OutOfMemory);
  saving.start(state, [](const FlatState&) {});
  EXPECT_THROW(saving.start(state, [](const FlatState&) {}), Error) << "the one before is still under way";
}

}  // namespace
}  // namespace mmfree
