// Who watches the ops of the CPU sees each of them once, with its arguments and a time.
#include <gtest/gtest.h>

#include "core/op_watch.h"
#include "core/ops/elementwise.h"
#include "tests/bench/op_work.h"
#include "tests/support/tensors.h"

using namespace mmfree;

namespace {

struct Seen : OpWatch {
  std::vector<std::string> ops;
  std::vector<OpWork> work;
  double seconds = 0;
  Seen() { op_watch = this; }
  ~Seen() override { op_watch = nullptr; }
  void ran(const char* op, const std::type_info& type, const void* args, double taken) override {
    ops.push_back(op), work.push_back(work_of(type, args));
    EXPECT_GE(taken, 0);
    seconds += taken;
  }
};

}  // namespace

TEST(OpWatch, SeesWhatWasComputedWhileItIsThere) {
  const Tensor a = random_tensor({3, 5}, DType::f32, 1), b = random_tensor({3, 5}, DType::f32, 2);
  Tensor y({3, 5}, DType::f32), product({3, 3}, DType::f32), watched({3, 5}, DType::f32);
  add(a, b, y);
  {
    Seen seen;
    add(a, b, watched);
    matmul(a, false, b, true, product);
    EXPECT_EQ((std::vector<std::string>{"add", "matmul"}), seen.ops);
    EXPECT_EQ(3 * 15 * 4, seen.work[0].bytes);
    EXPECT_EQ(OpWork::passes, seen.work[0].kind);
    EXPECT_EQ(2 * 3 * 3 * 5, seen.work[1].operations);
    EXPECT_EQ(OpWork::f32, seen.work[1].kind);
    EXPECT_GT(seen.seconds, 0);
  }
  EXPECT_EQ(nullptr, op_watch);
  add(a, b, y);
  EXPECT_TRUE(same_bits(y, watched));
}
