#pragma once
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string>

// In place of libc's calls, for a file system on which two names cannot be exchanged and on which a rename may fail.
namespace mmfree {

inline int exchange_error = 0;          ///< errno of every exchange; 0: none fails
inline int renames_until_failure = -1;  ///< the rename after so many fails; -1: none
inline std::string failing_target;      ///< renames to a path that ends with this fail; empty: none

}  // namespace mmfree

extern "C" __attribute__((used)) inline int renameat2(int from_dir, const char* from, int to_dir, const char* to,
                                                      unsigned flags) noexcept {
  if ((flags & RENAME_EXCHANGE) && mmfree::exchange_error != 0) return errno = mmfree::exchange_error, -1;
  return int(syscall(SYS_renameat2, from_dir, from, to_dir, to, flags));
}
extern "C" __attribute__((used)) inline int rename(const char* from, const char* to) noexcept {
  const bool counted = mmfree::renames_until_failure >= 0 && mmfree::renames_until_failure-- == 0;
  const bool named = !mmfree::failing_target.empty() && std::string(to).ends_with(mmfree::failing_target);
  if (counted || named) return errno = EIO, -1;
  return int(syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0));
}
