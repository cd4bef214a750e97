// Watched steps on a GPU: the ops that a dry run counts, with times, and the bits of recorded steps.
#include <nlohmann/json.hpp>

#include "core/ops/elementwise.h"
#include "tests/cuda/small_run.h"
#include "tests/support/tensors.h"
#include "train/run/op_rates.h"
#include "train/run/step_trace.h"

namespace mmfree {
namespace {

using Json = nlohmann::json;

TEST(CudaTimeline, TakesTimesInOrderAndStartsAnew) {
  MMFREE_NEEDS_GPU();
  gpu::Timeline timeline;
  EXPECT_TRUE(timeline.take().empty());
  Tensor large({int64_t(1) << 24}, DType::f32, Device::cuda);
  for (int round = 0; round < 2; ++round) {
    for (int i = 0; i < 5; ++i) {
      timeline.mark();
      fill(large, i);
    }
    timeline.mark();
    const std::vector<double> times = timeline.take();
    ASSERT_EQ(times.size(), 6u);
    EXPECT_EQ(times[0], 0);
    for (size_t i = 1; i < times.size(); ++i) EXPECT_GT(times[i], times[i - 1]) << "64 MiB are not written in no time";
  }
}

TEST(CudaTrace, ShowsStepsKernelByKernelAndKeepsTheirBits) {
  MMFREE_NEEDS_GPU();
  for (const Products ternary : {Products::compute, Products::int8}) {
    SmallRun plain(true, DType::bf16, Recompute::selective, 2, false, ternary);
    SmallRun traced(true, DType::bf16, Recompute::selective, 2, false, ternary);
    StepTrace first(Device::cuda, "a GPU"), trace(Device::cuda, "a GPU");
    for (int64_t s = 0; s < 7; ++s) {
      // Before steps are recorded, between recorded ones, and two in a row.
      const bool watched = s == 0 || s == 3 || s == 4;
      const StepResult a = plain.step(s);
      const StepResult b =
          watched ? (s == 0 ? first : trace).of(s + 1, [&] { return traced.step(s); }) : traced.step(s);
      EXPECT_EQ(a.loss, b.loss) << "step " << s;
      EXPECT_EQ(a.report.grad_norm, b.report.grad_norm) << "step " << s;
    }
    EXPECT_TRUE(same_bits(plain.params->values().to(Device::cpu), traced.params->values().to(Device::cpu)));
    double free = 0;
    std::map<std::string, int> seen;
    const Json file = Json::parse(trace.json());
    for (const Json& e : file.at("traceEvents")) {
      if (e.value("cat", "") != "op") continue;
      ++seen[e.at("name")];
      EXPECT_GE(e.at("ts").get<double>(), free - 1e-3) << e;
      free = e.at("ts").get<double>() + e.at("dur").get<double>();
    }
    // What a dry run counts, twice; a step also fills in the divisor and two rates before.
    RunConfig config = traced.config;
    config.train.backward = ternary;
    for (const auto& [name, sizes] : rehearse(config, {Device::cuda, DType::bf16}, Recompute::selective).work) {
      double calls = 0;
      for (const auto& [size, count] : sizes) calls += count;
      EXPECT_EQ(seen[name], 2 * (calls + 3 * (name == "fill"))) << name;
    }
  }
}

TEST(CudaRates, KnowEveryOpOfTheStepsThatTheyCameFrom) {
  MMFREE_NEEDS_GPU();
  const ComputeTarget target = choose_target("cuda", "auto", "test");
  const Study study{256, 384, 1000, 64, 2, Products::int8, 3, 2};
  const OpRates rates = measure_rates(target, {study}, [](const std::string&) {});
  EXPECT_TRUE(is_gpu_key(rates.device));
  EXPECT_GT(rates.beside, 0);
  for (const auto& [name, sizes] : rehearse(config_of(study), target, Recompute::selective).work)
    for (const auto& [size, calls] : sizes) EXPECT_GT(rates.seconds(name, size), 0) << name;
}

}  // namespace
}  // namespace mmfree
