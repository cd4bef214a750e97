#include "core/ranks/launch.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "core/error.h"
#include "core/system/hash.h"

namespace mmfree {
namespace {

constexpr int kMostRanks = 65536;

/// One launcher's idea of this process. -1: it does not say.
struct Claim {
  Launch::Launcher launcher;
  const char *rank_name, *size_name;
  int rank, size;
  int local_rank = -1, local_size = -1;
};

class Variables {
 public:
  explicit Variables(const std::function<const char*(const char*)>& value_of) : value_of_(value_of) {}

  bool has(const char* name) const { return !text(name).empty(); }
  std::string text(const char* name) const {
    const char* value = value_of_(name);
    return value ? value : "";
  }
  /// -1 if it is not set. @throws ConfigError if it is no number from `least` to `most`
  int number(const char* name, int least, int most) const {
    const std::string value = text(name);
    if (value.empty()) return -1;
    int n = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), n);
    MMFREE_CHECK(ConfigError, error == std::errc() && end == value.data() + value.size() && n >= least && n <= most,
                 name, " is ", quote(value), "; expected a number from ", least, " to ", most);
    return n;
  }

 private:
  const std::function<const char*(const char*)>& value_of_;
};

std::optional<Claim> by_mpi(const Variables& env) {
  struct Names {
    const char *rank, *size, *local_rank, *local_size;
  };
  constexpr Names kNames[] = {
      {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"},
      {"PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"}};
  for (const Names& n : kNames)
    if (env.has(n.rank) && env.has(n.size))
      return Claim{Launch::Launcher::mpi,
                   n.rank,
                   n.size,
                   env.number(n.rank, 0, kMostRanks),
                   env.number(n.size, 1, kMostRanks),
                   env.number(n.local_rank, 0, kMostRanks),
                   env.number(n.local_size, 1, kMostRanks)};
  return std::nullopt;
}

/// A step of srun; not the shell of an interactive job, and not what a batch script starts by itself.
std::optional<Claim> by_slurm(const Variables& env) {
  const std::string job = env.text("SLURM_JOB_NAME");
  if (!env.has("SLURM_PROCID") || !env.has("SLURM_STEP_NUM_TASKS") || job == "bash" || job == "interactive")
    return std::nullopt;
  return Claim{Launch::Launcher::slurm,
               "SLURM_PROCID",
               "SLURM_STEP_NUM_TASKS",
               env.number("SLURM_PROCID", 0, kMostRanks),
               env.number("SLURM_STEP_NUM_TASKS", 1, kMostRanks),
               env.number("SLURM_LOCALID", 0, kMostRanks)};
}

std::optional<Claim> by_variables(const Variables& env) {
  if (!env.has("RANK") || !env.has("WORLD_SIZE")) return std::nullopt;
  return Claim{env.has("TORCHELASTIC_RUN_ID") ? Launch::Launcher::torchrun : Launch::Launcher::variables,
               "RANK",
               "WORLD_SIZE",
               env.number("RANK", 0, kMostRanks),
               env.number("WORLD_SIZE", 1, kMostRanks),
               env.number("LOCAL_RANK", 0, kMostRanks),
               env.number("LOCAL_WORLD_SIZE", 1, kMostRanks)};
}

/// RANK and WORLD_SIZE that no torchrun has set must say what the launcher says: they may be left over.
void check_leftovers(const Variables& env, const std::optional<Claim>& launcher) {
  const int rank = env.number("RANK", 0, kMostRanks), size = env.number("WORLD_SIZE", 1, kMostRanks);
  if (!launcher || launcher->size == 1) {
    MMFREE_CHECK(ConfigError, (rank < 0) == (size < 0), rank < 0 ? "WORLD_SIZE" : "RANK", " is set and ",
                 rank < 0 ? "RANK" : "WORLD_SIZE", " is not; set both, or unset both");
    return;
  }
  const auto check = [&](const char* name, int value, const char* other, int of_launcher) {
    MMFREE_CHECK(ConfigError, value < 0 || value == of_launcher, name, " is ", value, " but ", other, " is ",
                 of_launcher, "; unset ", name, ", which the launcher did not set");
  };
  check("WORLD_SIZE", size, launcher->size_name, launcher->size);
  check("RANK", rank, launcher->rank_name, launcher->rank);
}

/// "node[03-07,12],x" -> "node03"
std::string first_host(const std::string& list) {
  const size_t end = list.find_first_of("[,");
  std::string host = list.substr(0, end);
  if (end == std::string::npos || list[end] == ',') return host;
  const size_t after = list.find_first_of("-,]", end);
  host += list.substr(end + 1, after == std::string::npos ? after : after - end - 1);
  const size_t close = list.find(']', end);
  if (close != std::string::npos) host += list.substr(close + 1, list.find(',', close) - close - 1);
  return host;
}

void find_address(const Variables& env, Launch& launch) {
  using enum Launch::Launcher;
  launch.address = env.text("MASTER_ADDR");
  const int port = env.number("MASTER_PORT", 1, 65535), own = env.number("MMFREE_PORT", 1, 65535);
  // A torchrun that was given the address itself listens at that port.
  const bool taken = env.text("TORCHELASTIC_USE_AGENT_STORE") == "True";
  launch.port = own > 0 ? own : port > 0 ? port + (taken && launch.launcher == torchrun) : 0;
  if (launch.launcher == mpi) return;
  if (launch.launcher == slurm) {
    const std::string step = env.text("SLURM_JOB_ID") + "." + env.text("SLURM_STEP_ID");
    if (launch.address.empty()) {
      const char* nodes = env.has("SLURM_STEP_NODELIST") ? "SLURM_STEP_NODELIST" : "SLURM_JOB_NODELIST";
      launch.address = first_host(env.text(nodes));
    }
    // Below the ports that systems give away by themselves.
    if (launch.port == 0) launch.port = 15000 + int(hash64(step) % 15000);
  }
  MMFREE_CHECK(ConfigError, !launch.address.empty() && launch.port > 0,
               launch.address.empty() ? "MASTER_ADDR" : "MASTER_PORT", " is not set, but ", launch.size,
               " ranks need to know where rank 0 is");
}

/// What processes of this run have in common, and those of a run before it at the same place have not.
std::string run_of(const Variables& env) {
  std::string run;
  for (const char* name : {"TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID", "SLURM_STEP_ID",
                           "SLURM_RESTART_COUNT", "MMFREE_RUN_SECRET"})
    run += env.text(name) + "\n";
  return run;
}

Launch launch_of(const Variables& env) {
  const std::optional<Claim> torch = by_variables(env), slurm = by_slurm(env);
  std::optional<Claim> mpi = by_mpi(env);
  // Srun may speak for MPI; but whether the MPI of this machine understands it is another question.
  if (mpi && slurm && mpi->rank == slurm->rank && mpi->size == slurm->size) mpi.reset();
  const bool torchrun = torch && torch->launcher == Launch::Launcher::torchrun;
  const std::optional<Claim>& launcher = mpi ? mpi : slurm;
  if (!torchrun) check_leftovers(env, launcher);
  const bool many = launcher && launcher->size > 1;
  const std::optional<Claim>& claim = torchrun || (torch && !many) ? torch : launcher;
  Launch launch;
  if (!claim) return launch;
  MMFREE_CHECK(ConfigError, claim->rank < claim->size, claim->rank_name, " is ", claim->rank, " and ", claim->size_name,
               " is ", claim->size, "; ranks count from 0");
  launch.launcher = claim->launcher;
  launch.rank = claim->rank;
  launch.size = claim->size;
  launch.local_rank = std::max(claim->local_rank, 0);
  launch.local_size = std::max(claim->local_size, launch.local_rank + 1);
  MMFREE_CHECK(ConfigError, claim->local_size < 0 || claim->local_rank < claim->local_size, "rank ", launch.rank,
               " is number ", claim->local_rank, " of ", claim->local_size, " on its machine; they count from 0");
  if (launch.size == 1) return launch;
  find_address(env, launch);
  launch.run = run_of(env);
  return launch;
}

/// Whether this process is the one to speak for all: the launcher's own rank is more to be trusted than one by hand.
bool is_first(const Variables& env) {
  const char* ranks[] = {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID", "RANK"};
  if (env.has("TORCHELASTIC_RUN_ID")) std::swap(ranks[0], ranks[3]);
  for (const char* name : ranks)
    if (env.has(name)) return env.text(name) == "0";
  return true;
}

}  // namespace

const char* name_of(Launch::Launcher launcher) {
  using enum Launch::Launcher;
  switch (launcher) {
    case none:
      return "none";
    case variables:
      return "RANK and WORLD_SIZE";
    case torchrun:
      return "torchrun";
    case mpi:
      return "mpirun";
    case slurm:
      return "srun";
  }
  return "";
}

Launch detect_launch(const std::function<const char*(const char*)>& value_of) {
  const Variables env(value_of);
  try {
    return launch_of(env);
  } catch (const ConfigError& error) {
    throw ConfigError(is_first(env) ? concat("ranks: ", error.what()) : "");
  }
}

Launch detect_launch() {
  return detect_launch([](const char* name) { return std::getenv(name); });
}

}  // namespace mmfree
