// Who watches the ops of the CPU sees each of them once, with its arguments and a time.
#include <gtest/gtest.h>

#include "core/op_work.h"
#include "core/ops/elementwise.h"
#include "core/ops/matmul.h"
#include "tests/support/tensors.h"

using namespace mmfree;

namespace {

struct Seen : OpWatch {
  std::vector<std::string> started, ops, names;
  std::vector<OpWork> work;
  double seconds = 0;
  Seen() { op_watch = this; }
  ~Seen() override { op_watch = nullptr; }
  void starts(const char* op) override { started.push_back(op); }
  void ran(const OpCall& call) override {
    ops.push_back(call.op), work.push_back(work_of(call)), names.push_back(name_of(call, work.back()));
    EXPECT_EQ(Device::cpu, call.device);
    EXPECT_GE(call.seconds, 0);
    seconds += call.seconds;
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
    EXPECT_EQ((std::vector<std::string>{"add", "matmul f32 nt"}), seen.names);
    EXPECT_EQ(seen.ops, seen.started);
    EXPECT_GT(seen.seconds, 0);
  }
  EXPECT_EQ(nullptr, op_watch);
  add(a, b, y);
  EXPECT_TRUE(same_bits(y, watched));
}
