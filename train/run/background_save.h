#pragma once
#include <atomic>
#include <exception>
#include <functional>
#include <thread>

#include "train/run/checkpoint.h"

namespace mmfree {

/// Writes checkpoints beside training: the state is copied on its own device, which takes milliseconds, and a thread
/// brings the copy to the disk. Where the device has no room for the copy (4 bytes per parameter and state of it; on
/// the CPU it may take half of the available memory) or the system no thread, training waits and the save needs no more
/// memory than a few chunks.
class BackgroundSave {
 public:
  ~BackgroundSave();
  /// Calls write(state) with a state that training does not change any more. The save before it must have been waited
  /// for. @throws what this save throws, if training has to wait for it; OutOfMemory for std::bad_alloc, here as in
  /// wait
  void start(const FlatState& state, std::function<void(const FlatState&)> write);
  /// A save was started and neither wait() nor poll() has told its end.
  bool pending() const { return thread_.joinable(); }
  /// Waits for the save under way. @throws what it throws
  void wait();
  /// Like wait(), if the save under way has come to its end. Returns whether it has.
  bool poll();

 private:
  std::thread thread_;
  std::atomic<bool> done_ = false;
  std::exception_ptr failure_;
};

}  // namespace mmfree
