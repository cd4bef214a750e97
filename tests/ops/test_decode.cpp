// What a decode program does beside the kernels, which tests/layers/test_engine.cpp compares with the model's: how
// threads share its steps, tables that are not f32, and what it refuses.
#include <gtest/gtest.h>

#include <array>

#include "core/cpu/team.h"
#include "core/ops/decode.h"
#include "core/ops/elementwise.h"
#include "tests/support/compare.h"
#include "tests/support/tensors.h"

namespace mmfree {
namespace {

TEST(Team, EveryTaskRunsOnceAndPhasesDoNotOverlap) {
  constexpr int64_t kTasks = 37, kPhases = 200;
  for (int threads : {1, 2, 5}) {
    std::array<std::atomic<int>, kTasks> done{};
    std::atomic<int> wrong = 0;
    cpu::with_team(threads, [&](cpu::Member& member) {
      for (int64_t phase = 0; phase < kPhases; ++phase) {
        const int64_t n = phase % 7 == 3 ? 0 : 1 + phase % kTasks;
        member.share(n, [&](int64_t i) { ++done[size_t(i)]; });
        for (int64_t i = 0; i < kTasks && phase % 50 == 49; ++i) {  // all threads see the same finished work
          int expected = 0;
          for (int64_t p = 0; p <= phase; ++p) expected += p % 7 != 3 && i < 1 + p % kTasks;
          wrong += done[size_t(i)] != expected;
        }
        member.share(phase % 50 == 49 ? threads : 0, [](int64_t) {});  // nobody goes on before all have looked
      }
    });
    EXPECT_EQ(wrong, 0) << threads;
  }
}

/// A program that only looks ids up.
struct Lookup {
  std::vector<float> y;
  DecodeProgram program;
  Lookup(const QuantTensor& table, int64_t rows) : y(size_t(rows * table.values.dim(1))) {
    program.steps.emplace_back(DecodeEmbed{table, y.data()});
  }
  void run(const std::vector<int32_t>& ids) {
    run_decode(program, {ids.data(), int64_t(ids.size()), nullptr, 0, nullptr, 0, 0, 1});
  }
};

TEST(Decode, TablesOfAllDtypesGiveTheValuesTheyStandFor) {
  constexpr int64_t kV = 7, kD = 5;
  const Tensor table = random_tensor({kV, kD}, DType::f32, 3);
  Tensor narrow({kV, kD}, DType::bf16), wide({kV, kD}, DType::f32), codes({kV, kD}, DType::i8), steps({kV}, DType::f32);
  cast(table, narrow), cast(narrow, wide);
  for (int64_t v = 0; v < kV; ++v) {
    steps.mut<float>()[v] = 0.25f * float(v + 1);
    for (int64_t k = 0; k < kD; ++k) codes.mut<int8_t>()[v * kD + k] = int8_t(17 * v - 5 * k);
  }
  const std::vector<int32_t> ids = {6, 0, 3, 3};
  Lookup f32(table, 4), bf16(narrow, 4), i8(QuantTensor(codes, steps, DType::f32), 4);
  f32.run(ids), bf16.run(ids), i8.run(ids);
  for (size_t n = 0; n < ids.size(); ++n)
    for (int64_t k = 0; k < kD; ++k) {
      const size_t at = n * kD + size_t(k);
      EXPECT_EQ(f32.y[at], table.data<float>()[ids[n] * kD + k]);
      EXPECT_EQ(bf16.y[at], wide.data<float>()[ids[n] * kD + k]);
      EXPECT_EQ(i8.y[at], float(17 * ids[n] - 5 * k) * 0.25f * float(ids[n] + 1));
    }
}

TEST(Decode, RefusesIdsOutsideTheTableAndOtherDevices) {
  Lookup lookup(Tensor::zeros({7, 5}, DType::f32), 2);
  EXPECT_THROW(lookup.run({0, 7}), DataError);
  EXPECT_THROW(lookup.run({-1}), DataError);
  EXPECT_NO_THROW(lookup.run({0, 6}));
  EXPECT_NO_THROW(lookup.run({}));
  lookup.program.device = Device::cuda;
  EXPECT_THROW(lookup.run({0}), DeviceError);
}

}  // namespace
}  // namespace mmfree
