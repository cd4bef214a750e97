#pragma once

namespace mmfree {

/// While it lives, flock fails in this process as on a file system without locks.
class NoLocks {
 public:
  NoLocks();
  ~NoLocks();
  NoLocks(const NoLocks&) = delete;
};

}  // namespace mmfree
