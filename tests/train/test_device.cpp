// Where to compute, as users name it.
#include <gtest/gtest.h>

#include <map>

#include "core/gpu.h"
#include "core/ops/ternary.h"
#include "core/system/machine.h"
#include "core/thread_pool.h"
#include "tests/support/gpu.h"
#include "tests/support/program.h"
#include "tests/support/tensors.h"
#include "train/inference/model.h"
#include "train/run/compute_target.h"

namespace mmfree {
namespace {

TEST(Device, NamesAreAutoCpuCudaAndCudaWithANumber) {
  for (const char* good : {"auto", "cpu", "cuda", "cuda:0", "cuda:1", "cuda:15", "cuda:999"})
    EXPECT_EQ(name_of(parse_device(good).value()), good);
  for (const char* bad : {"", "gpu", "CPU", "cuda:", "cuda:x", "cuda:-1", "cuda:1000", "cuda: 1", "cuda:1 ", "cuda1",
                          "cpu:0", "auto:0", " cpu", "cuda:1x"})
    EXPECT_FALSE(parse_device(bad)) << bad;
}

TEST(Device, TheCpuIsAlwaysThereAndComputesInF32) {
  const Products fast = fast_bf16_products() ? Products::bf16 : Products::compute;
  for (const auto& [compute, products] :
       std::map<std::string, Products>{{"auto", fast}, {"f32", Products::compute}, {"bf16", Products::bf16}}) {
    const ComputeTarget t = choose_target("cpu", compute, "here");
    EXPECT_EQ(products, t.products) << compute;
    EXPECT_EQ(products, backward_products(t, Products::compute).ternary);
    EXPECT_EQ(Products::int8, backward_products(t, Products::int8).ternary);
    EXPECT_EQ(products, backward_products(t, Products::int8).other) << "never in int8";
    const ComputeTarget gpu{Device::cuda, DType::bf16, Products::compute, "cuda:0"};
    EXPECT_EQ(Products::int8, backward_products(gpu, Products::int8).ternary);
    EXPECT_EQ(Products::compute, backward_products(gpu, Products::int8).other);
    EXPECT_EQ(Device::cpu, t.device);
    EXPECT_EQ(DType::f32, t.compute);
    EXPECT_EQ("cpu", t.name);
  }
}

TEST(Device, RefusesWhatIsNoDevice) {
  expect_error<ConfigError>({"x.yaml: train.device: expected auto, cpu, cuda or cuda:N, found 'gpu'"},
                            [] { choose_target("gpu", "auto", "x.yaml: train.device"); });
  EXPECT_THROW(choose_target("cuda:x", "auto", "here"), ConfigError);
}

TEST(Device, WithoutAGpuAutoIsTheCpuAndCudaIsRefusedWithTheReason) {
  const std::string problem = gpu::problem();
  if (problem.empty()) GTEST_SKIP() << "there is a GPU";
  EXPECT_EQ(std::string::npos, problem.find('\n')) << problem;
  EXPECT_EQ(Device::cpu, choose_target("auto", "auto", "here").device);
  EXPECT_EQ(DType::f32, choose_target("auto", "f32", "here").compute);
  for (const char* device : {"cuda", "cuda:0"})
    for (const char* compute : {"auto", "f32", "bf16"})
      expect_error<ConfigError>({"--device: ", problem.c_str(), "choose device cpu"},
                                [&] { choose_target(device, compute, "--device"); });
  EXPECT_THROW(gpu::use(0), DeviceError);
}

TEST(Device, WithAGpuAutoTakesItInBf16) {
  MMFREE_NEEDS_GPU();
  for (const char* device : {"auto", "cuda", "cuda:0"}) {
    const ComputeTarget t = choose_target(device, "auto", "here");
    EXPECT_EQ(Device::cuda, t.device);
    EXPECT_EQ(DType::bf16, t.compute);
    EXPECT_EQ(0u, t.name.find("cuda:0 (")) << t.name;
    EXPECT_EQ(DType::f32, choose_target(device, "f32", "here").compute);
  }
  expect_error<ConfigError>({"here: "}, [] { choose_target("cuda:998", "auto", "here"); });
}

TEST(Device, DecidesTheBackwardProductsOfAuto) {
  ComputeTarget target;
  EXPECT_FALSE(choose_target("cpu", "auto", "here").prefers_int8) << "no run of the CPU's rounding was measured";
  EXPECT_EQ(Products::compute, backward_products(target, std::nullopt).ternary);
  target.prefers_int8 = true;
  EXPECT_EQ(Products::int8, backward_products(target, std::nullopt).ternary);
  EXPECT_EQ(Products::compute, backward_products(target, Products::compute).ternary);
  EXPECT_EQ(Products::compute, backward_products(target, std::nullopt).other) << "the head is never in 8 bits";
}

TEST(Device, InfoWithoutAFileTellsWhatThisMachineComputesWith) {
  Program info({"info"}, "");
  ASSERT_EQ(info.wait(), 0) << info.err();
  const std::string text = info.out();
  const auto contains = [&](const std::string& part) { return text.find(part) != std::string::npos; };
  for (const std::string& part :
       {concat("threads     ", threads::limit(), " ("),
        concat("products in 8 bits by ", cpu::ternary_instruction_sets().front(), ", the first of: "),
        concat("auto on the CPU is ", fast_bf16_products() ? "bf16" : "f32", " for backward"),
        concat("huge pages: ", huge_pages()), concat("device      auto is ", gpu::problem().empty() ? "cuda" : "cpu")})
    EXPECT_TRUE(contains(part)) << part << " in\n" << text;
  EXPECT_TRUE(gpu::problem().empty() || contains("GPU         none to use: " + gpu::problem())) << text;
}

}  // namespace
}  // namespace mmfree
