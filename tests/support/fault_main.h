#pragma once
#include <omp.h>

#include <cstdlib>
#include <functional>

#include "core/system/report.h"
#include "tests/support/tally.h"

namespace mmfree {

/// The body of a fault program's main: what it throws becomes a line and a status.
inline int fault_main(const std::function<int()>& body) {
  int status = 0;
  const int failed = run_reporting([&] { status = body(); });
  return failed ? failed : status;
}

/// NAME COUNT SEED [CASE]: runs cases 0 to before COUNT, or CASE alone, by program.run(seed, case, tally), which gives
/// what went wrong, and returns the program's exit status.
template <class Program>
int run_cases(const std::string& name, int argc, char** argv) {
  MMFREE_CHECK(UsageError, argc == 3 || argc == 4, "usage: ", name, " COUNT SEED [CASE]");
  omp_set_num_threads(1);
  const int64_t count = std::atoll(argv[1]), only = argc == 4 ? std::atoll(argv[3]) : -1;
  const uint64_t seed = std::strtoull(argv[2], nullptr, 10);
  Program program;
  Tally tally(name, only < 0 ? count : 1);
  for (int64_t i = only < 0 ? 0 : only; i < (only < 0 ? count : only + 1); ++i) {
    const std::string wrong = program.run(seed, i, tally);
    if (!wrong.empty())
      tally.fail(concat("case ", i, " of seed ", seed, ": ", wrong), concat(name, " ", count, " ", seed, " ", i));
    tally.done_one();
  }
  return tally.finish();
}

}  // namespace mmfree
