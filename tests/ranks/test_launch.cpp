#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/ranks/launch.h"
#include "tests/support/compare.h"
#include "tests/support/tensors.h"

namespace mmfree {
namespace {

using Variables = std::map<std::string, std::string>;
using enum Launch::Launcher;

Launch launch(const Variables& variables) {
  return detect_launch([&](const char* name) {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

Variables merged(Variables a, const Variables& b) {
  for (const auto& [name, value] : b) a[name] = value;
  return a;
}

const Variables kByHand = {{"RANK", "2"}, {"WORLD_SIZE", "4"}, {"MASTER_ADDR", "10.0.0.1"}, {"MASTER_PORT", "29500"}};
const Variables kTorchrun = merged(kByHand, {{"LOCAL_RANK", "0"},
                                             {"LOCAL_WORLD_SIZE", "2"},
                                             {"TORCHELASTIC_RUN_ID", "none"},
                                             {"TORCHELASTIC_RESTART_COUNT", "0"},
                                             {"TORCHELASTIC_USE_AGENT_STORE", "False"}});
const Variables kOpenMpi = {{"OMPI_COMM_WORLD_RANK", "3"},
                            {"OMPI_COMM_WORLD_SIZE", "8"},
                            {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                            {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}};
const Variables kMpich = {{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}, {"MPI_LOCALRANKID", "1"}, {"MPI_LOCALNRANKS", "2"}};
const Variables kSrun = {{"SLURM_JOB_ID", "17"},      {"SLURM_STEP_ID", "0"},
                         {"SLURM_JOB_NAME", "train"}, {"SLURM_PROCID", "5"},
                         {"SLURM_LOCALID", "1"},      {"SLURM_STEP_NUM_TASKS", "8"},
                         {"SLURM_NTASKS", "8"},       {"SLURM_STEP_NODELIST", "node[03-06],other"}};

void expect_launch(const Launch& l, Launch::Launcher launcher, int rank, int size, int local_rank, int local_size) {
  EXPECT_EQ(name_of(l.launcher), name_of(launcher));
  EXPECT_EQ(l.rank, rank);
  EXPECT_EQ(l.size, size);
  EXPECT_EQ(l.local_rank, local_rank);
  EXPECT_EQ(l.local_size, local_size);
}

TEST(Launch, without_variables_there_is_one_rank) {
  EXPECT_EQ(launch({}), Launch());
  // A batch script of Slurm, and a shell that srun started.
  EXPECT_EQ(launch({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "8"}, {"SLURM_JOB_ID", "17"}}), Launch());
  for (const char* shell : {"bash", "interactive"})
    EXPECT_EQ(launch(merged(kSrun, {{"SLURM_JOB_NAME", shell}})), Launch());
  EXPECT_EQ(launch({{"RANK", "0"}, {"WORLD_SIZE", "1"}}).size, 1);
}

TEST(Launch, reads_what_each_launcher_sets) {
  const Launch by_hand = launch(kByHand), torchrun = launch(kTorchrun), slurm = launch(kSrun);
  expect_launch(by_hand, variables, 2, 4, 0, 1);
  EXPECT_EQ(by_hand.address, "10.0.0.1");
  EXPECT_EQ(by_hand.port, 29500);
  expect_launch(torchrun, Launch::Launcher::torchrun, 2, 4, 0, 2);
  EXPECT_EQ(torchrun.port, 29500);
  expect_launch(launch(kOpenMpi), mpi, 3, 8, 1, 2);
  expect_launch(launch(kMpich), mpi, 1, 2, 1, 2);
  EXPECT_EQ(launch(kOpenMpi).address, "");
  expect_launch(slurm, Launch::Launcher::slurm, 5, 8, 1, 2);
  EXPECT_EQ(slurm.address, "node03");
  EXPECT_TRUE(slurm.port >= 15000 && slurm.port < 30000) << slurm.port;
  EXPECT_NE(slurm.port, launch(merged(kSrun, {{"SLURM_JOB_ID", "18"}})).port);
}

TEST(Launch, the_first_host_of_slurms_lists) {
  const auto host = [](const char* list) { return launch(merged(kSrun, {{"SLURM_STEP_NODELIST", list}})).address; };
  EXPECT_EQ(host("a"), "a");
  EXPECT_EQ(host("a,b"), "a");
  EXPECT_EQ(host("a[1,3-4],b"), "a1");
  EXPECT_EQ(host("a[007-012]-ib,b"), "a007-ib");
  EXPECT_EQ(host("a[5]"), "a5");
  EXPECT_EQ(host("a["), "a");
}

TEST(Launch, the_port_of_a_torchrun_that_listens_there_itself_is_left_to_it) {
  const Variables listens = merged(kTorchrun, {{"TORCHELASTIC_USE_AGENT_STORE", "True"}});
  EXPECT_EQ(launch(listens).port, 29501);
  EXPECT_EQ(launch(merged(listens, {{"MMFREE_PORT", "12345"}})).port, 12345);
  EXPECT_EQ(launch(merged(kSrun, {{"MASTER_PORT", "12345"}, {"MASTER_ADDR", "head"}})).address, "head");
}

TEST(Launch, torchrun_may_stand_inside_another_launcher) {
  expect_launch(launch(merged(kTorchrun, kSrun)), Launch::Launcher::torchrun, 2, 4, 0, 2);
  expect_launch(launch(merged(kTorchrun, kOpenMpi)), Launch::Launcher::torchrun, 2, 4, 0, 2);
  // Mpirun inside a job of Slurm, whose own step has one process a machine.
  expect_launch(launch(merged(kSrun, kOpenMpi)), mpi, 3, 8, 1, 2);
  // What srun says in the name of MPI.
  expect_launch(launch(merged(kSrun, {{"PMI_RANK", "5"}, {"PMI_SIZE", "8"}})), Launch::Launcher::slurm, 5, 8, 1, 2);
}

TEST(Launch, a_new_try_of_a_run_is_another_run) {
  EXPECT_EQ(launch(kTorchrun).run, launch(kTorchrun).run);
  for (const char* name : {"TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MMFREE_RUN_SECRET"})
    EXPECT_NE(launch(merged(kTorchrun, {{name, "7"}})).run, launch(kTorchrun).run) << name;
}

TEST(Launch, contradictions_are_one_line_of_rank_0) {
  struct Case {
    Variables variables;
    const char *part, *other = "";
  };
  const Variables first = merged(kByHand, {{"RANK", "0"}});
  const Variables of_open_mpi = merged(kOpenMpi, {{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "0"}});
  const Case cases[] = {
      {merged(first, {{"WORLD_SIZE", "x"}}), "WORLD_SIZE is 'x'", "expected a number"},
      {merged(first, {{"WORLD_SIZE", "0"}}), "WORLD_SIZE is '0'"},
      {merged(first, {{"WORLD_SIZE", "99999999999"}}), "WORLD_SIZE"},
      {merged(first, {{"MASTER_PORT", "70000"}}), "MASTER_PORT is '70000'", "1 to 65535"},
      {merged(first, {{"MASTER_PORT", ""}}), "MASTER_PORT is not set"},
      {merged(first, {{"MASTER_ADDR", ""}}), "MASTER_ADDR is not set"},
      {{{"RANK", "0"}}, "RANK is set and WORLD_SIZE is not"},
      {{{"WORLD_SIZE", "4"}}, "WORLD_SIZE is set and RANK is not"},
      {merged(of_open_mpi, {{"WORLD_SIZE", "4"}}), "WORLD_SIZE is 4 but OMPI_COMM_WORLD_SIZE is 8", "unset WORLD_SIZE"},
      {merged(of_open_mpi, {{"WORLD_SIZE", "8"}, {"RANK", "1"}}), "RANK is 1 but OMPI_COMM_WORLD_RANK is 0"},
      {merged(kSrun, {{"SLURM_PROCID", "0"}, {"WORLD_SIZE", "2"}}), "WORLD_SIZE is 2 but SLURM_STEP_NUM_TASKS is 8"},
      {merged(first, {{"LOCAL_RANK", "2"}, {"LOCAL_WORLD_SIZE", "2"}}), "number 2 of 2"},
  };
  for (const Case& c : cases) expect_error<ConfigError>({c.part, c.other}, [&] { launch(c.variables); });
  // The others say nothing.
  for (const Variables& other : {merged(kByHand, {{"MASTER_PORT", ""}}), merged(kByHand, {{"RANK", "9"}}),
                                 merged(kOpenMpi, {{"WORLD_SIZE", "4"}}), merged(kSrun, {{"RANK", "0"}})}) {
    try {
      launch(other);
      ADD_FAILURE() << "accepted";
    } catch (const ConfigError& error) {
      EXPECT_STREQ(error.what(), "");
    }
  }
}

}  // namespace
}  // namespace mmfree
