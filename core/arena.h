#pragma once
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "core/device.h"

namespace mmfree {

/// Counters of one arena, in bytes unless named otherwise.
struct ArenaStats {
  size_t live = 0;      ///< handed out now
  size_t peak = 0;      ///< most ever handed out at once
  size_t reserved = 0;  ///< obtained from the system
  size_t slabs = 0;     ///< number of system allocations
};

/// Memory pool of one device: slabs that are never returned before the arena dies, best fit by size then address,
/// neighbours coalesced, 256-byte alignment. A repeated sequence of requests gets the same addresses each time, so a
/// training step in steady state asks the system for nothing. Thread-safe.
class Arena {
 public:
  /// Where slabs come from: host memory here, device memory in a GPU backend.
  struct Source {
    Device device;
    void* (*obtain)(size_t bytes);  ///< returns nullptr when the system has no more
    void (*give_back)(void*);
  };
  explicit Arena(Source source, size_t slab_bytes = size_t(32) << 20) : source_(source), slab_bytes_(slab_bytes) {}
  ~Arena();
  Arena(const Arena&) = delete;

  /// The arena that new tensors of `device` use on this thread: the innermost ArenaScope, else the process-wide one.
  static std::shared_ptr<Arena> current(Device device);
  /// A fresh arena over host memory.
  static std::shared_ptr<Arena> host();

  /// At least `bytes` bytes (0 is allowed), aligned to 256. @throws Error when the system is out of memory.
  void* allocate(size_t bytes);
  /// Returns a block to the arena; nullptr is ignored.
  void release(void* block);
  ArenaStats stats() const;
  /// Starts a new measurement of `peak`.
  void reset_peak();
  Device device() const { return source_.device; }

 private:
  void insert_free(char* begin, size_t bytes, int slab);
  Source source_;
  size_t slab_bytes_;
  mutable std::mutex mutex_;
  std::vector<void*> slabs_;
  std::set<std::pair<size_t, char*>> free_by_size_;
  std::map<char*, std::pair<size_t, int>> free_by_address_;  // size, slab
  std::map<char*, std::pair<size_t, int>> used_;             // size, slab
  ArenaStats stats_;
};

/// While alive, tensors created on this thread come from `arena`.
class ArenaScope {
 public:
  explicit ArenaScope(std::shared_ptr<Arena> arena);
  ~ArenaScope();
  ArenaScope(const ArenaScope&) = delete;
};

}  // namespace mmfree
