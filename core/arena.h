#pragma once
#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "core/device.h"

namespace mmfree {

/// Counters of one arena, in bytes unless named otherwise.
struct ArenaStats {
  size_t live = 0;      ///< allocated and not released
  size_t peak = 0;      ///< largest value of `live` since reset_peak
  size_t reserved = 0;  ///< obtained from the system
  size_t slabs = 0;     ///< number of system allocations
};

/// Memory pool of one device. It obtains slabs from the system and keeps them until its destructor. Allocation is best
/// fit by size, then by address, with 256-byte alignment; free neighbours are joined. A repeated sequence of requests
/// gets the same addresses each time (over a contiguous source from its first repetition on), so a training step in
/// steady state asks the system for nothing. Thread-safe.
class Arena {
 public:
  /// Where slabs come from: host memory, device memory, or only addresses without memory (see `counted`).
  struct Source {
    Device device;
    std::function<void*(size_t bytes)> obtain;  ///< returns nullptr when the system has no more
    std::function<void(void*)> give_back;
    bool contiguous = false;  ///< each slab begins at the end of the one before, so together they are one growing slab
  };
  explicit Arena(Source source, size_t slab_bytes = size_t(32) << 20)
      : source_(std::move(source)), slab_bytes_(slab_bytes) {}
  ~Arena();
  Arena(const Arena&) = delete;

  /// The arena that new tensors of `device` use on this thread: the innermost ArenaScope, else the process-wide one.
  static std::shared_ptr<Arena> current(Device device);
  /// A new arena: over host memory; over the memory of the GPU in use; over addresses that cost no memory until they
  /// are written (of a GPU: none at all), which counts what a dry run would allocate (see DryRun).
  static std::shared_ptr<Arena> host();
  static std::shared_ptr<Arena> gpu();
  static std::shared_ptr<Arena> counted(Device device = Device::cuda);

  /// At least `bytes` bytes (0 is allowed), aligned to 256. @throws Error when the system is out of memory.
  void* allocate(size_t bytes);
  /// Returns a block to the arena; nullptr is ignored.
  void release(void* block);
  ArenaStats stats() const;
  /// What was obtained from the system.
  struct Slab {
    char* begin;
    size_t bytes;
  };
  std::vector<Slab> slabs() const;
  /// Their sizes, and where the blocks in use are in them: equal texts, equal places.
  std::string layout() const;
  /// Sets `peak` to `live`.
  void reset_peak();
  Device device() const { return source_.device; }

 private:
  using FreeBySize = std::set<std::pair<size_t, char*>>;
  FreeBySize::iterator best_fit(size_t want);
  void insert_free(char* begin, size_t bytes, int slab);
  void grow(size_t want);
  void free_block(char* block);
  Source source_;
  size_t slab_bytes_;
  mutable std::mutex mutex_;
  std::vector<Slab> slabs_;
  char* end_ = nullptr;  ///< of the last slab
  FreeBySize free_by_size_;
  std::map<char*, std::pair<size_t, int>> free_by_address_;  // size, slab
  std::map<char*, std::pair<size_t, int>> used_;             // size, slab
  ArenaStats stats_;
};

/// While alive, new tensors of this thread on the arena's device come from `arena`.
class ArenaScope {
 public:
  explicit ArenaScope(std::shared_ptr<Arena> arena);
  ~ArenaScope();
  ArenaScope(const ArenaScope&) = delete;
};

}  // namespace mmfree
