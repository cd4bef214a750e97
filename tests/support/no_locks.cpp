#include "tests/support/no_locks.h"

#include <sys/file.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

namespace {
std::atomic<int> refusing{0};
}

/// Stands before libc's.
extern "C" int flock(int fd, int operation) noexcept {
  if (!refusing) return int(syscall(SYS_flock, fd, operation));
  errno = ENOLCK;
  return -1;
}

namespace mmfree {

NoLocks::NoLocks() { ++refusing; }
NoLocks::~NoLocks() { --refusing; }

}  // namespace mmfree
