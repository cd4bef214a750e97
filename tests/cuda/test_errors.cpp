// What goes wrong with a GPU itself: no memory left, work that hangs, and a GPU that is lost to the process.
#include <gtest/gtest.h>

#if MMFREE_CUDA
#include <cuda.h>
#include <cuda_runtime.h>

#include "core/cuda/context.h"
#endif

#include <atomic>
#include <thread>

#include "core/ops/elementwise.h"
#include "tests/support/gpu.h"
#include "tests/support/tiny_run.h"
#include "train/run/trainer.h"

namespace mmfree {
namespace {

TEST(CudaErrors, OutOfMemorySaysWhatToChangeAndLeavesTheGpuUsable) {
  MMFREE_NEEDS_GPU();
  const ArenaScope own(Arena::gpu());
  const auto free = int64_t(gpu::info().free);
  try {
    const Tensor t({free / 4 + (1 << 20)}, DType::f32, Device::cuda);
    ADD_FAILURE() << "more memory than there is";
  } catch (const Error& e) {
    const std::string said = e.what();
    EXPECT_NE(said.find("train.recompute=full"), std::string::npos) << said;
    EXPECT_EQ(said.find('\n'), std::string::npos) << said;
  }
  Tensor t({1000}, DType::f32, Device::cuda);
  fill(t, 3);
  EXPECT_EQ(t.to(Device::cpu).data<float>()[999], 3);
}

#if MMFREE_CUDA
TEST(CudaErrors, AWaitForWorkThatHangsCanBeGivenUp) {
  MMFREE_NEEDS_GPU();
  struct GivenUp {};
  Tensor t({1}, DType::f32, Device::cuda);
  fill(t, 5);
  gpu::Readback readback(sizeof(float));
  std::atomic<bool> hangs = true;
  const auto hang = [](void* flag) {
    while (*static_cast<std::atomic<bool>*>(flag)) std::this_thread::yield();
  };
  ASSERT_EQ(cudaLaunchHostFunc(cuda::stream(), hang, &hangs), cudaSuccess);
  readback.start(t.raw(), sizeof(float));
  int asked = 0;
  EXPECT_THROW(readback.wait([&] {
    if (++asked == 3) throw GivenUp();
  }),
               GivenUp);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess) << "a result that is not there yet is no error";
  EXPECT_EQ(*static_cast<const float*>(readback.wait([&] { hangs = false; })), 5);
}
#endif

/// A kernel that ends the process's use of the GPU, as a hardware fault would.
void lose_gpu() {
#if MMFREE_CUDA
  constexpr const char* ptx =
      ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry lose() {\n  trap;\n  ret;\n}\n";
  const auto driver = [](const char* name) {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
    cudaGetDriverEntryPointByVersion(name, &entry, 12000, cudaEnableDefault, &found);
    return entry;
  };
  CUmodule module = nullptr;
  CUfunction function = nullptr;
  const auto load = reinterpret_cast<decltype(&cuModuleLoadData)>(driver("cuModuleLoadData"));
  const auto find = reinterpret_cast<decltype(&cuModuleGetFunction)>(driver("cuModuleGetFunction"));
  const auto launch = reinterpret_cast<decltype(&cuLaunchKernel)>(driver("cuLaunchKernel"));
  if (load(&module, ptx) != CUDA_SUCCESS || find(&function, module, "lose") != CUDA_SUCCESS ||
      launch(function, 1, 1, 1, 1, 1, 1, 0, nullptr, nullptr, nullptr) != CUDA_SUCCESS)
    std::fprintf(stderr, "the kernel that traps could not be started\n");
#endif
}

TEST(CudaErrors, ALostGpuEndsTheRunWithOneLineAndTheCheckpointStays) {
  MMFREE_NEEDS_GPU();
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // the child starts anew, with a GPU of its own to lose
  const std::string folder = testing::TempDir() + "mmfree_lost_gpu";
  std::filesystem::remove_all(folder);
  RunConfig c = tiny_run(folder);
  c.train.device.kind = DeviceChoice::cuda;
  c.train.resume = {ResumeFrom::newest_if_any};
  const auto lose = [&] {
    RunConfig part = c;
    part.train.max_time = 1e-9;
    Trainer(part, true, false).run();
    Trainer rest(c, true, false);
    lose_gpu();
    try {
      rest.run();
    } catch (const Error& e) {
      std::fprintf(stderr, "%s\n", e.what());
      std::_Exit(int(e.status()) + 100);
    }
    std::_Exit(0);
  };
  EXPECT_EXIT(lose(), testing::ExitedWithCode(101), "the GPU is lost to this process: run again with --resume");
  std::vector<std::string> warnings;
  EXPECT_EQ(newest_checkpoint(folder, into(warnings))->path(), checkpoint_path(folder, 1));
  EXPECT_TRUE(warnings.empty());
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace mmfree
