#pragma once
#include <functional>
#include <string>

namespace mmfree {

/// Which of a run's processes this one is, as the program that started it says in the environment.
struct Launch {
  enum class Launcher { none, variables, torchrun, mpi, slurm };
  Launcher launcher = Launcher::none;
  int rank = 0, size = 1;
  int local_rank = 0, local_size = 1;  ///< among those of this machine; 0 of 1 where the launcher does not say
  std::string address;                 ///< where rank 0 can be reached; empty: MPI knows
  int port = 0;
  std::string run;  ///< what tells this run from others that may meet at the same port

  bool operator==(const Launch&) const = default;
};

/// "torchrun" and so on.
const char* name_of(Launch::Launcher);

/// Reads the variables of torchrun (and RANK and WORLD_SIZE set by hand), of Open MPI and MPICH, and of a step of
/// Slurm, in this order; without any, one rank. Torchrun may stand inside one of the others. MMFREE_PORT replaces the
/// port. `value_of`: gives a variable or nullptr, for tests.
/// @throws ConfigError if they contradict each other or are not complete; with an empty message, which nobody prints,
/// in processes that are not rank 0
Launch detect_launch(const std::function<const char*(const char*)>& value_of);
Launch detect_launch();

}  // namespace mmfree
