// Devices without a GPU: what a dry run does and what happens outside of one.
#include <gtest/gtest.h>

#include <filesystem>
#include <thread>

#include "core/gpu.h"
#include "core/ops/linear.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tensors.h"

using namespace mmfree;

TEST(DryRun, IsOnWhileAliveOnItsThreadAndNests) {
  EXPECT_FALSE(DryRun::active());
  {
    const DryRun outer;
    {
      const DryRun inner;
      EXPECT_TRUE(DryRun::active());
    }
    EXPECT_TRUE(DryRun::active());
    std::thread([] { EXPECT_FALSE(DryRun::active()); }).join();
  }
  EXPECT_FALSE(DryRun::active());
}

TEST(DryRun, CountsMemoryChecksArgumentsAndComputesNothing) {
  const auto arena = Arena::counted();
  const DryRun dry;
  const ArenaScope scope(arena);
  // Ten terabytes: any access would fault.
  const int64_t n = int64_t(1) << 20, d = int64_t(1) << 19;
  Tensor x({n, d}, DType::f32, Device::cuda), y({n, d}, DType::bf16, Device::cuda), zeros;
  EXPECT_EQ(size_t(n * d * 6), arena->stats().live);
  cast(x, y);
  fill(x, 1);
  zeros = Tensor::zeros({n, d}, DType::f32, Device::cuda);
  x.copy_from(zeros);
  Tensor total({1}, DType::f64, Device::cuda);
  sum(x, 1, total);
  EXPECT_EQ(size_t(n * d * 10 + 256), arena->stats().live);
  const Tensor copy = zeros.clone();
  EXPECT_EQ(size_t(n * d * 14 + 256), arena->stats().peak);
  Tensor narrow({n, d - 1}, DType::f32, Device::cuda), host({n, 1}, DType::f32);
  expect_error<ShapeError>({"add"}, [&] { add(x, narrow, x); });
  Tensor column({n, 1}, DType::f32, Device::cuda);
  expect_error<DeviceError>({"add", "different devices"}, [&] { add(column, host, column); });
}

TEST(DryRun, CopiesBetweenDevicesLeaveTheHostAlone) {
  const DryRun dry;
  const ArenaScope scope(Arena::counted());
  const Tensor host = random_tensor({3, 5}, DType::f32, 1), there = host.to(Device::cuda);
  EXPECT_EQ(Device::cuda, there.device());
  EXPECT_EQ(Device::cpu, there.to(Device::cpu).device());
  Tensor back = full({3, 5}, DType::f32, 7);
  back.copy_from(there);
  EXPECT_TRUE(same_bits(full({3, 5}, DType::f32, 7), back));
  // What is on the CPU is computed as ever.
  Tensor twice({3, 5}, DType::f32);
  add(host, host, twice);
  EXPECT_EQ(2 * host.data<float>()[7], twice.data<float>()[7]);
}

TEST(Device, CopiesAndZeroesHostMemory) {
  char a[5] = {1, 2, 3, 4, 5}, b[5] = {};
  copy_bytes(b, Device::cpu, a, Device::cpu, 4);
  EXPECT_EQ(4, b[3]);
  EXPECT_EQ(0, b[4]);
  zero_bytes(a + 1, Device::cpu, 2);
  EXPECT_EQ(1, a[0]);
  EXPECT_EQ(0, a[2]);
  EXPECT_EQ(4, a[3]);
  copy_bytes(nullptr, Device::cuda, nullptr, Device::cpu, 0);
  zero_bytes(nullptr, Device::cuda, 0);
}

TEST(Device, AvailableMemoryHeedsTheLimitsOfControlGroups) {
  const TempDir dir;
  const auto put = [&](const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(dir / path).parent_path());
    spit(dir / path, text);
  };
  EXPECT_EQ(available_host_memory(dir.path()), 0u) << "nothing is known";
  put("proc/meminfo", "MemTotal:       2000 kB\nMemFree:         100 kB\nMemAvailable:    1000 kB\n");
  EXPECT_EQ(available_host_memory(dir.path()), 1024000u);
  // Version 2: the job's own limit, or one above it; of its use, cache may go.
  put("proc/self/cgroup", "0::/jobs/17/step\n");
  const std::string root = "sys/fs/cgroup/";
  put(root + "jobs/17/step/memory.max", "max\n");
  put(root + "jobs/17/memory.max", "500000\n");
  put(root + "jobs/17/memory.current", "300000\n");
  put(root + "jobs/17/memory.stat", "anon 100000\ninactive_file 150000\nactive_file 50000\n");
  EXPECT_EQ(available_host_memory(dir.path()), 350000u);
  put(root + "jobs/17/memory.current", "900000\n");
  EXPECT_EQ(available_host_memory(dir.path()), 0u) << "more in use than is allowed";
  put("proc/self/cgroup", "0::/elsewhere\n");
  EXPECT_EQ(available_host_memory(dir.path()), 1024000u);
  put(root + "memory.max", "70000\n");  // a container sees its own group as the root
  EXPECT_EQ(available_host_memory(dir.path()), 70000u);
  // Version 1.
  put("proc/self/cgroup", "5:cpu,cpuacct:/a\nno group\n4:hugetlb,memory:/a/b\n0::/elsewhere\n");
  put(root + "memory.max", "max\n");
  put(root + "memory/a/b/memory.limit_in_bytes", "600000\n");
  put(root + "memory/a/b/memory.usage_in_bytes", "200000\n");
  put(root + "memory/a/b/memory.stat", "total_inactive_file 50000\n");
  EXPECT_EQ(available_host_memory(dir.path()), 450000u);
  put(root + "memory/memory.limit_in_bytes", "90000\n");
  EXPECT_EQ(available_host_memory(dir.path()), 90000u);
}

TEST(Device, WithoutAGpuItsTensorsAreRefusedWithTheReason) {
  const std::string problem = gpu::problem();
  if (problem.empty()) GTEST_SKIP() << "there is a GPU";
  for (const auto& use : std::vector<std::function<void()>>{
           [] { Tensor({3}, DType::f32, Device::cuda); }, [] { full({3}, DType::f32, 1).to(Device::cuda); },
           [] { Arena::gpu(); }, [] { gpu::use(); }, [] { gpu::info(); }, [] { gpu::PinnedBuffer(4); }})
    expect_error<DeviceError>({"gpu"}, use);
}
