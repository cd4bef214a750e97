// How the ranks of a run find each other, and what they say if they do not.
#include <gtest/gtest.h>
#include <poll.h>

#include <thread>

#include "core/error.h"
#include "tests/support/rank_run.h"

namespace mmfree {
namespace {

constexpr double kLong = 120;  ///< seconds, for what takes a moment on an idle machine
constexpr int kConfig = int(Exit::bad_config);

std::vector<std::string> introduce() { return {rank_worker_path(), "introduce"}; }

Environment with(Environment e, const Environment& more) {
  for (const auto& [name, value] : more) e[name] = value;
  return e;
}

/// All of `run` end with the status of a bad configuration, and one says why.
void expect_refused(Processes& run, const std::string& part) {
  for (const int status : run.wait(kLong)) EXPECT_EQ(status, kConfig);
  ASSERT_EQ(run.messages().size(), 1u) << run.err(0);
  EXPECT_NE(run.messages()[0].find(part), std::string::npos) << run.messages()[0];
}

// The shortest timeout is 3 s; a start waits 10 s longer. All of these wait at the same time.
TEST(Joining, waits_for_missing_ranks_and_for_a_port_so_long_and_no_longer) {
  const Environment soon = {{"MMFREE_RANK_TIMEOUT", "3"}};
  const int port = free_port(), empty = free_port(), taken = free_port();
  Processes incomplete, without_first, second;
  for (const int r : {0, 1}) incomplete.start(introduce(), with(rank_environment(r, 4, port), soon));
  without_first.start(introduce(), with(rank_environment(1, 2, empty), soon));
  const tcp::Listener someone = tcp::listen_at(taken);
  second.start(introduce(), with(rank_environment(0, 2, taken), soon));
  expect_refused(incomplete, "no word of rank 2, 3 of 4 in 13 s");
  expect_refused(without_first, concat("cannot reach rank 0 at '127.0.0.1' port ", empty));
  expect_refused(second, concat("cannot listen at port ", taken));
}

TEST(Joining, refuses_ranks_that_do_not_fit_together) {
  const int port = free_port(), other = free_port();
  Processes sizes, twins;
  sizes.start(introduce(), rank_environment(0, 3, port));
  sizes.start(introduce(), rank_environment(1, 4, port));
  for (const int r : {0, 1, 1}) twins.start(introduce(), rank_environment(r, 3, other));
  expect_refused(sizes, "was started as one of 4 ranks, and rank 0 as one of 3");
  expect_refused(twins, "two processes came as rank 1");
}

TEST(Joining, sends_ranks_of_another_run_away_and_goes_on) {
  const int port = free_port();
  Processes run, other;
  run.start(introduce(), rank_environment(0, 2, port));
  other.start(introduce(), with(rank_environment(1, 2, port), {{"MMFREE_RUN_SECRET", "other"}}));
  expect_refused(other, "ranks of another run meet there");
  run.start(introduce(), rank_environment(1, 2, port));
  EXPECT_EQ(run.wait(kLong), (std::vector<int>{0, 0})) << run.err(0) << run.err(1);
}

TEST(Joining, sees_that_another_program_has_the_port) {
  tcp::Listener listener = tcp::listen_at(0);
  Processes run;
  run.start(introduce(), rank_environment(1, 2, listener.port));
  pollfd called = {listener.socket.get(), POLLIN, 0};
  ASSERT_EQ(::poll(&called, 1, int(kLong * 1000)), 1);
  const Fd caller = tcp::accept_one(listener.socket);
  const std::string answer = "HTTP/1.1 400 Bad Request\r\n\r\n";
  EXPECT_TRUE(tcp::send_all(caller, answer.data(), answer.size(), tcp::Clock::now() + std::chrono::seconds(60)));
  expect_refused(run, "another program answers there");
}

TEST(Joining, refuses_another_program) {
  const TempDir dir;
  std::filesystem::copy_file(rank_worker_path(), dir / "rank_worker");
  std::ofstream(dir / "rank_worker", std::ios::app) << "changed";
  const int port = free_port();
  Processes run;
  run.start(introduce(), rank_environment(0, 2, port));
  run.start({dir / "rank_worker", "introduce"}, rank_environment(1, 2, port));
  expect_refused(run, "ranks have different programs: rank 0");
}

TEST(Joining, says_where_mpi_is_missing_and_goes_without_it_where_it_can) {
  const TempDir dir;  // where no module of MPI lies
  std::filesystem::copy_file(rank_worker_path(), dir / "rank_worker");
  const auto start = [&](Processes& run, const Environment& more) {
    for (const char* rank : {"0", "1"}) {
      Environment e = no_ranks();
      e["OMPI_COMM_WORLD_RANK"] = e["OMPI_COMM_WORLD_LOCAL_RANK"] = rank;
      e["OMPI_COMM_WORLD_SIZE"] = e["OMPI_COMM_WORLD_LOCAL_SIZE"] = "2";
      run.start({dir / "rank_worker", "introduce"}, with(e, more));
    }
  };
  Processes without, by_tcp;
  start(without, {});
  start(by_tcp, {{"MASTER_ADDR", "127.0.0.1"}, {"MASTER_PORT", std::to_string(free_port())}});
  expect_refused(without, "MPI cannot be used: libmmfree_mpi.so");
  EXPECT_EQ(by_tcp.wait(kLong), (std::vector<int>{0, 0})) << by_tcp.err(0);
  EXPECT_NE(by_tcp.out(0).find("by mpirun over TCP"), std::string::npos) << by_tcp.out(0);
}

TEST(Joining, contradicting_variables_are_one_line_of_rank_0) {
  Processes run;
  for (const char* rank : {"0", "1"}) {
    Environment e = no_ranks();
    e["OMPI_COMM_WORLD_RANK"] = rank;
    e["OMPI_COMM_WORLD_SIZE"] = "2";
    e["WORLD_SIZE"] = "8";
    run.start(introduce(), e);
  }
  expect_refused(run, "WORLD_SIZE is 8 but OMPI_COMM_WORLD_SIZE is 2");
}

}  // namespace
}  // namespace mmfree
