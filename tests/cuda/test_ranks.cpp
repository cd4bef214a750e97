// Ranks with a GPU each, as processes of their own (tests/ranks/rank_worker.cpp).
#include <gtest/gtest.h>

#include "core/gpu.h"
#include "tests/support/gpu.h"
#include "tests/support/rank_run.h"

namespace mmfree {
namespace {

constexpr double kLong = 180;  ///< seconds; connecting GPUs takes some

/// Skips the test where there are fewer GPUs than ranks.
#define MMFREE_NEEDS_GPUS(n) \
  MMFREE_NEEDS_GPU();        \
  if (gpu::count() < (n)) GTEST_SKIP() << gpu::count() << " GPUs, " << (n) << " are needed"

std::unique_ptr<Processes> start(int size, std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), rank_worker_path());
  return start_ranks(By::tcp, size, arguments);
}

void expect_exchange(int size, const std::string& scenario = "gpu_exchange") {
  const auto run = start(size, {scenario});
  const std::vector<int> ended = run->wait(kLong);
  for (size_t r = 0; r < ended.size(); ++r) EXPECT_EQ(ended[r], 0) << "rank " << r << ": " << run->err(r);
}

TEST(CudaRanks, two_exchange) {
  MMFREE_NEEDS_GPUS(2);
  expect_exchange(2);
}

TEST(CudaRanks, four_exchange) {
  MMFREE_NEEDS_GPUS(4);
  expect_exchange(4);
}

TEST(CudaRanks, two_read_each_others_memory) {
  MMFREE_NEEDS_GPUS(2);
  expect_exchange(2, "gpu_peers");
}

TEST(CudaRanks, four_read_each_others_memory) {
  MMFREE_NEEDS_GPUS(4);
  expect_exchange(4, "gpu_peers");
}

TEST(CudaRanks, two_gather_from_each_others_memory) {
  MMFREE_NEEDS_GPUS(2);
  expect_exchange(2, "gpu_gather");
}

TEST(CudaRanks, four_gather_from_each_others_memory) {
  MMFREE_NEEDS_GPUS(4);
  expect_exchange(4, "gpu_gather");
}

/// Rank 1 is killed.
void expect_that_all_end(int size, const std::string& wait) {
  SCOPED_TRACE(wait);
  const auto run = start(size, {"gpu_end", "1", wait});
  std::vector<int> wanted(size_t(size), int(Exit::lost));
  wanted[1] = 1000 + SIGKILL;
  EXPECT_EQ(run->wait(kLong), wanted) << run->err(0);
  ASSERT_EQ(run->messages().size(), 1u) << run->err(0);
  EXPECT_NE(run->messages()[0].find("rank 1 on "), std::string::npos) << run->messages()[0];
  for (int r = 0; r < size; r += r == 0 ? 2 : 1)
    EXPECT_EQ(run->out(size_t(r)), "unwound\n") << "a process that hangs is ended from outside: rank " << r;
}

TEST(CudaRanks, of_which_one_is_killed_end_though_their_gpus_wait_for_it) {
  MMFREE_NEEDS_GPUS(2);
  for (const char* wait : {"exchange", "mark", "gather"}) expect_that_all_end(2, wait);
}

TEST(CudaRanks, four_of_which_one_is_killed_end_too) {
  MMFREE_NEEDS_GPUS(4);
  for (const char* wait : {"mark", "gather"}) expect_that_all_end(4, wait);
}

TEST(CudaRanks, may_not_share_a_gpu) {
  MMFREE_NEEDS_GPU();
  const auto run = start(2, {"gpu_shared"});
  EXPECT_EQ(run->wait(kLong), (std::vector<int>{int(Exit::bad_config), int(Exit::bad_config)}));
  ASSERT_EQ(run->messages().size(), 1u) << run->err(0) << run->err(1);
  EXPECT_TRUE(run->messages()[0].find(" use one GPU, ") != std::string::npos ||
              run->messages()[0].find("libnccl") != std::string::npos)
      << run->messages()[0];
}

}  // namespace
}  // namespace mmfree
