#pragma once
#include <functional>

namespace mmfree {

/// Runs `body` as the whole of a process. What it throws becomes one line on stderr. Returns the exit status: an
/// Error's own, else Exit::ok or Exit::internal. If memory ends where no exception may pass, in a destructor, the line
/// is the same and the process ends there.
int run_reporting(const std::function<void()>& body);

}  // namespace mmfree
