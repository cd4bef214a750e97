#pragma once
#include <memory>
#include <string>

#include "core/ranks/transport.h"

namespace mmfree {

/// Starts MPI for this process; rank and size are what MPI says. nullptr, with a reason in `problem`, if the module
/// libmmfree_mpi.so, or the MPI that it was built with, is not there or cannot start.
std::unique_ptr<Transport> start_mpi(int& rank, int& size, std::string& problem);

}  // namespace mmfree
