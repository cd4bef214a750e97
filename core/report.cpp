#include "core/report.h"

#include <unistd.h>

#include <cstdio>
#include <exception>
#include <filesystem>
#include <new>
#include <system_error>

#include "core/error.h"

namespace mmfree {
namespace {

/// Whether a path leads to nothing that could be read, in difference to a device that fails.
bool is_out_of_reach(const std::error_code& code) {
  for (const std::errc error :
       {std::errc::no_such_file_or_directory, std::errc::not_a_directory, std::errc::permission_denied,
        std::errc::filename_too_long, std::errc::too_many_symbolic_link_levels})
    if (code == error) return true;
  return false;
}

/// Turns the exception that is being handled into a line and an exit status.
int report() {
  try {
    throw;
  } catch (const Error& e) {
    std::fprintf(stderr, "mmfree: %s\n", e.what());
    return int(e.status());
  } catch (const std::filesystem::filesystem_error& e) {
    std::fprintf(stderr, "mmfree: %s: %s\n", e.path1().c_str(), e.code().message().c_str());
    return int(is_out_of_reach(e.code()) ? Exit::missing_input : Exit::io);
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
