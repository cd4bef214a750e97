// The ranks of a run in processes of their own (rank_worker.cpp): what they exchange, and how they end.
#include <gtest/gtest.h>

#include <csignal>

#include "core/ranks/group.h"
#include "tests/support/rank_run.h"
#include "tests/support/tensors.h"

namespace mmfree {
namespace {

constexpr double kLong = 120;  ///< seconds, for what takes a moment on an idle machine
constexpr int kLost = int(Exit::lost), kStopped = int(Exit::stopped), kConfig = int(Exit::bad_config);

std::vector<std::string> worker(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), rank_worker_path());
  return arguments;
}

class Ranks : public testing::TestWithParam<By> {
 protected:
  void SetUp() override {
    if (GetParam() == By::mpi && !mpirun_problem().empty()) GTEST_SKIP() << mpirun_problem();
  }
  std::unique_ptr<Processes> start(int size, const std::vector<std::string>& arguments, const Environment& more = {}) {
    return start_ranks(GetParam(), size, worker(arguments), more);
  }
  bool by_tcp() const { return GetParam() == By::tcp; }

  /// All ranks end with `status`, but `gone`, which ends with `its`; there is one message, which holds `part`.
  void expect_end(Processes& run, int status, const std::string& part, int gone = -1, int its = 0) {
    const std::vector<int> ended = run.wait(kLong);
    for (size_t i = 0; i < ended.size(); ++i) {
      // Mpirun's own status is that of the rank that ended first, or 128 + its signal.
      const bool is_gone = by_tcp() && int(i) == gone;
      if (by_tcp())
        EXPECT_EQ(ended[i], is_gone ? its : status) << "rank " << i << ": " << run.err(i);
      else if (gone < 0)
        EXPECT_EQ(ended[i], status) << run.err(i);
      else
        EXPECT_NE(ended[i], 0) << run.err(i);
    }
    const std::vector<std::string> messages = run.messages();
    if (part.empty()) {
      EXPECT_TRUE(messages.empty()) << messages[0];
      return;
    }
    ASSERT_EQ(messages.size(), 1u) << (messages.empty() ? run.err(0) : messages[1]);
    EXPECT_NE(messages[0].find(part), std::string::npos) << messages[0];
  }
};

TEST_P(Ranks, exchange_bytes_texts_and_tensors) {
  for (const int size : {2, 4}) {
    const auto run = start(size, {"exchange"});
    expect_end(*run, 0, "");
    std::string all;
    for (size_t i = 0; i < run->count(); ++i) all += run->out(i);
    for (int r = 0; r < size; ++r)
      EXPECT_NE(all.find(concat("rank ", r, " of ", size, ", ", r, " of ", size, " here")), std::string::npos) << all;
    EXPECT_NE(all.find(concat(size, " ranks on 1 machine, by ")), std::string::npos) << all;
    EXPECT_NE(all.find(by_tcp() ? "over TCP" : "over MPI ("), std::string::npos) << all;
  }
}

TEST_P(Ranks, wait_for_each_other_at_the_end) {
  const auto run = start(3, {"late"});
  expect_end(*run, 0, "");
}

TEST_P(Ranks, end_with_the_status_and_the_message_of_one_that_fails) {
  for (const char* who : {"2", "0", "all"}) {
    const auto run = start(3, {"fail", who});
    const bool other = *who == '2';
    expect_end(*run, int(Exit::bad_data), concat("corpus.h5: is damaged (seen by ", other ? 2 : 0, ")"));
    EXPECT_EQ(run->messages().at(0).find("rank 2 on "), other ? 8 : std::string::npos);
  }
}

TEST_P(Ranks, stop_together) {
  expect_end(*start(3, {"stop", "all"}), kStopped, "mmfree: stopped by SIGTERM");
  expect_end(*start(3, {"stop", "1"}), kStopped, ": stopped by SIGTERM");
}

TEST_P(Ranks, say_in_one_line_what_differs_and_what_is_missing) {
  expect_end(*start(3, {"differ"}), kConfig, "different configurations: rank 0");
  expect_end(*start(3, {"problem", "1"}), kConfig, ": NCCL: libnccl.so.2 was not found");
  expect_end(*start(3, {"problem", "all"}), kConfig, "mmfree: NCCL: libnccl.so.2 was not found");
}

TEST_P(Ranks, notice_that_they_do_not_do_the_same) {
  expect_end(*start(2, {"mismatch"}), int(Exit::internal), " bytes");
}

INSTANTIATE_TEST_SUITE_P(by, Ranks, testing::Values(By::tcp, By::mpi),
                         [](const auto& info) { return std::string(name_of(info.param)); });

/// Over TCP alone, where no mpirun ends the others.
class LostRanks : public Ranks {};
INSTANTIATE_TEST_SUITE_P(by, LostRanks, testing::Values(By::tcp),
                         [](const auto& info) { return std::string(name_of(info.param)); });

TEST_P(LostRanks, are_noticed_when_they_are_killed) {
  expect_end(*start(4, {"end", "2", "9"}), kLost, "mmfree: rank 2 on ", 2, 1000 + SIGKILL);
  expect_end(*start(4, {"end", "0", "9"}), kLost, "mmfree: rank 0 on ", 0, 1000 + SIGKILL);
}

TEST_P(LostRanks, are_noticed_when_they_end_without_a_word) {
  expect_end(*start(3, {"end", "1", "exit"}), kLost, "mmfree: rank 1 on ", 1, 0);
  expect_end(*start(3, {"end", "1", "return"}), int(Exit::internal), " has ended before others", 1, 0);
}

// Six seconds: on a loaded machine a thread may not run for one or two.
TEST_P(LostRanks, are_noticed_when_they_are_stopped) {
  const Environment soon = {{"MMFREE_RANK_TIMEOUT", "6"}};
  const auto last = start(3, {"end", "2", std::to_string(SIGSTOP)}, soon);
  const auto first = start(3, {"end", "0", std::to_string(SIGSTOP)}, soon);
  for (const auto& [run, stopped] : {std::pair{last.get(), 2}, {first.get(), 0}}) {
    const std::vector<int> ended = run->wait(kLong, {size_t(stopped)});
    for (int r = 0; r < 3; ++r)
      EXPECT_EQ(ended[size_t(r)], r == stopped ? Processes::kRunning : kLost) << run->err(size_t(r));
    ASSERT_EQ(run->messages().size(), 1u);
    EXPECT_NE(run->messages()[0].find(concat("rank ", stopped, " on ")), std::string::npos);
    EXPECT_NE(run->messages()[0].find("has not answered for 6 s"), std::string::npos);
    // When it goes on it finds that it is late.
    run->signal(size_t(stopped), SIGCONT);
    EXPECT_EQ(run->wait(kLong)[size_t(stopped)], kLost);
  }
}

TEST_P(LostRanks, that_all_were_stopped_together_is_no_loss) {
  const auto run = start(3, {"exchange_for", "12"}, {{"MMFREE_RANK_TIMEOUT", "3"}});
  std::this_thread::sleep_for(std::chrono::seconds(2));
  for (size_t r = 0; r < 3; ++r) run->signal(r, SIGSTOP);
  std::this_thread::sleep_for(std::chrono::seconds(7));
  for (size_t r = 0; r < 3; ++r) run->signal(r, SIGCONT);
  expect_end(*run, 0, "");
}

// All of these stand at the same time. A process that sleeps ends by its watch, ten seconds later.
TEST_P(LostRanks, are_those_that_answer_but_stand_longer_than_they_may) {
  const Environment soon = {{"MMFREE_RANK_TIMEOUT", "3"}};
  const auto last = start(3, {"stand", "2", "3600"}, soon), first = start(3, {"stand", "0", "3600"}, soon),
             all = start(3, {"stand", "all", "3600"}, soon), freely = start(3, {"stand", "1", "8", "freely"}, soon),
             shortly = start(3, {"stand", "1", "1"}, soon);
  expect_end(*last, kLost, "mmfree: rank 2 on ");
  EXPECT_NE(last->messages()[0].find("was lost: it has stood in a step for "), std::string::npos);
  expect_end(*first, kLost, "mmfree: rank 0 on ");
  expect_end(*all, kLost, "mmfree: all ranks have stood in a step for ");
  expect_end(*freely, 0, "");
  expect_end(*shortly, 0, "");
}

TEST_P(LostRanks, end_those_too_that_are_busy_with_something_else) {
  const auto begin = std::chrono::steady_clock::now();
  const auto last = start(3, {"end", "2", "9", "busy"}), first = start(3, {"end", "0", "9", "busy"});
  expect_end(*last, kLost, "mmfree: rank 2 on ", 2, 1000 + SIGKILL);
  expect_end(*first, kLost, "mmfree: rank 0 on ", 0, 1000 + SIGKILL);
  EXPECT_GT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(9)) << "they had no time to end themselves";
}

TEST(RanksByMpi, of_which_one_is_killed_end) {
  if (!mpirun_problem().empty()) GTEST_SKIP() << mpirun_problem();
  for (const char* who : {"1", "0"}) {
    const auto run = start_ranks(By::mpi, 3, worker({"end", who, "9"}));
    const std::vector<int> ended = run->wait(kLong);
    EXPECT_NE(ended[0], Processes::kRunning);
    EXPECT_NE(ended[0], 0);
    EXPECT_LE(run->messages().size(), 1u) << run->err(0);  // mpirun may have been faster
  }
}

TEST(RanksByMpi, need_the_mpirun_of_their_mpi) {
  if (!mpirun_problem().empty()) GTEST_SKIP() << mpirun_problem();
  Environment e = no_ranks_nor_leaks();
  e["PMI_RANK"] = "0";
  e["PMI_SIZE"] = "2";
  Processes run;
  run.start(worker({"exchange"}), e);
  EXPECT_EQ(run.wait(kLong)[0], kConfig);
  ASSERT_EQ(run.messages().size(), 1u) << run.err(0);
  EXPECT_NE(run.messages()[0].find("use the mpirun of that MPI"), std::string::npos) << run.messages()[0];
}

TEST(RankThreads, are_a_share_of_the_cores_unless_someone_sets_them) {
  const auto threads = [](const Environment& more) {
    const auto run = start_ranks(By::tcp, 2, worker({"introduce"}), more);
    run->wait(kLong);
    const std::string out = run->out(1), mark = "threads ";
    const size_t at = out.find(mark);
    return at == std::string::npos ? -1 : std::atoi(out.c_str() + at + mark.size());
  };
  const Environment torchrun = {{"TORCHELASTIC_RUN_ID", "x"}, {"OMP_NUM_THREADS", "1"}};
  const int share = std::max(1, omp_get_num_procs() / 2);
  EXPECT_EQ(threads({}), share);
  EXPECT_EQ(threads(torchrun), share) << "torchrun's 1 is nobody's wish";
  EXPECT_EQ(threads({{"OMP_NUM_THREADS", "1"}}), 0);
  EXPECT_EQ(threads({{"TORCHELASTIC_RUN_ID", "x"}, {"OMP_NUM_THREADS", "3"}}), 0);
}

TEST(GroupAlone, copies) {
  const auto group = Group::alone();
  EXPECT_EQ(group->size(), 1);
  EXPECT_EQ(group->describe(), "");
  const int five = 5;
  int got = 0, again = 0;
  group->all_gather(&five, sizeof five, &got);
  group->all_to_all(&five, &again, sizeof five);
  EXPECT_EQ(got + again, 10);
  EXPECT_EQ(group->gather_texts("x"), std::vector<std::string>{"x"});
  Tensor from = random_tensor({3, 5}, DType::f32, 1), to({0}, DType::f32);
  group->all_to_all(from, {{0, 15}}, to);
  group->all_gather(from, Bounds{0, 15});
  group->barrier();
  group->check();
  EXPECT_EQ(group->traffic().bytes, 0u);
  expect_error<ConfigError>({"wrong"}, [&] { group->require("wrong"); });
  expect_error<DataError>({"bad"}, [&] { group->run([] { throw DataError("bad"); }); });
}

TEST(GroupPretended, has_a_size_and_no_others) {
  const auto group = Group::pretended(4);
  EXPECT_EQ(group->size(), 4);
  const Tensor from = random_tensor({8}, DType::f32, 1);
  Tensor to({6}, DType::f32);
  group->all_to_all(from, ranges_of(even_bounds(8, 4)), to);
  for (int r = 0; r < 3; ++r) EXPECT_TRUE(same_bits(from.slice(0, 2), to.slice(2 * r, 2 * r + 2)));
  const char mine = 'x';
  char all[4];
  group->all_gather(&mine, 1, all);
  EXPECT_EQ(std::string(all, 4), "xxxx");
}

TEST(GroupTensors, of_wrong_sizes_types_and_pieces_are_refused) {
  const auto group = Group::pretended(2);
  Tensor from({6}, DType::f32), to({3}, DType::f32), narrow({2}, DType::f32), wide({3}, DType::f64);
  const Ranges halves = {{0, 3}, {3, 6}};
  group->all_to_all(from, halves, to);
  group->all_gather(from, Ranges{{1, 2}, {5, 5}});
  expect_error<ShapeError>({"all_to_all"}, [&] { group->all_to_all(from, halves, narrow); });
  expect_error<ShapeError>({"pieces"}, [&] { group->all_to_all(from, {{0, 6}}, to); });
  expect_error<ShapeError>({"pieces"}, [&] { group->all_to_all(from, {{0, 3}, {2, 6}}, to); });
  expect_error<ShapeError>({"pieces"}, [&] { group->all_to_all(from, {{0, 3}, {3, 2}}, to); });
  expect_error<ShapeError>({"pieces"}, [&] { group->all_gather(from, Ranges{{0, 3}, {3, 7}}); });
  expect_error<ShapeError>({"pieces"}, [&] { group->all_gather(from, Ranges{{-1, 3}, {3, 6}}); });
  expect_error<DTypeError>({"f64"}, [&] { group->all_to_all(from, halves, wide); });
}

TEST(EvenBounds, differ_by_one_at_most) {
  EXPECT_EQ(even_bounds(10, 4), (Bounds{0, 3, 6, 8, 10}));
  EXPECT_EQ(even_bounds(0, 2), (Bounds{0, 0, 0}));
  EXPECT_EQ(even_bounds(3, 1), (Bounds{0, 3}));
}

}  // namespace
}  // namespace mmfree
