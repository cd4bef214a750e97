#include "core/report.h"

#include <unistd.h>

#include <cstdio>
#include <exception>
#include <new>

#include "core/error.h"

namespace mmfree {
namespace {

/// Turns the exception that is being handled into a line and an exit status.
int report() {
  try {
    throw;
  } catch (const Error& e) {
    std::fprintf(stderr, "mmfree: %s\n", e.what());
    return int(e.status());
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "mmfree: out of memory\n");
  } catch (const std::exception& e) {
    std::fprintf(stderr, "mmfree: internal error: %s\n", e.what());
  }
  return int(Exit::internal);
}

/// Libraries allocate in destructors and in functions that may not throw.
[[noreturn]] void end() {
  if (std::current_exception()) _exit(report());
  std::fputs("mmfree: internal error: ended where no exception may pass; out of memory?\n", stderr);
  _exit(int(Exit::internal));
}

}  // namespace

int run_reporting(const std::function<void()>& body) {
  std::set_terminate(end);
  try {
    body();
    return int(Exit::ok);
  } catch (...) {
    return report();
  }
}

}  // namespace mmfree
