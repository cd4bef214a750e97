#pragma once
#include <atomic>
#include <exception>
#include <functional>
#include <thread>

#include "train/run/checkpoint.h"

namespace mmfree {

/// Writes checkpoints while training continues: copies the state on its own device, which takes milliseconds, and
/// writes the copy in a thread. If the device has no room for the copy (4 bytes per parameter and per state of it; on
/// the CPU at most half of the available memory) or the system no thread, training waits, and the save needs only the
/// memory of a few chunks.
class BackgroundSave {
 public:
  ~BackgroundSave();
  /// Calls write(state) with a state that training does not change. The save before must not be pending. @throws what
  /// this save throws, if training has to wait for it; OutOfMemory for std::bad_alloc, here and in wait
  void start(const FlatState& state, std::function<void(const FlatState&)> write);
  /// Whether a save was started whose end neither wait() nor poll() has reported.
  bool pending() const { return thread_.joinable(); }
  /// Waits for the pending save. @throws what it throws
  void wait();
  /// Like wait() if the pending save has ended. Returns whether it has.
  bool poll();

 private:
  std::thread thread_;
  std::atomic<bool> done_ = false;
  std::exception_ptr failure_;
};

}  // namespace mmfree
