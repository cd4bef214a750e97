#pragma once
#include <exception>
#include <functional>
#include <thread>

#include "train/checkpoint.h"

namespace mmfree {

/// Writes checkpoints beside training. On a GPU the state is copied within the device, which takes milliseconds, and a
/// thread brings the copy to the disk; where the device has no room for it, and on the CPU, training waits.
class BackgroundSave {
 public:
  ~BackgroundSave();
  /// Calls write(state) with a state that training does not change any more. Waits for the save before it.
  /// @throws what that save, or this one if training has to wait for it, throws
  void start(const FlatState& state, std::function<void(const FlatState&)> write);
  /// Waits for the save under way. @throws what it throws
  void wait();

 private:
  std::thread thread_;
  std::exception_ptr failure_;
};

}  // namespace mmfree
