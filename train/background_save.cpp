#include "train/background_save.h"

#include <utility>

#include "core/gpu.h"

namespace mmfree {

BackgroundSave::~BackgroundSave() {
  if (thread_.joinable()) thread_.join();
}

void BackgroundSave::start(const FlatState& state, std::function<void(const FlatState&)> write) {
  wait();
  FlatState copy;
  if (state.values.device() == Device::cuda) {
    // Not from the arena of the steps: a recorded step would write over it.
    const ArenaScope own(Arena::gpu());
    try {
      copy = {state.values.clone(), state.m.clone(), state.v.clone()};
      gpu::synchronize();
    } catch (const Error&) {
      copy = {};  // no room on the device
    }
  }
  if (!copy.values.defined()) return write(state);
  thread_ = std::thread([this, copy = std::move(copy), write = std::move(write)]() mutable {
    try {
      const gpu::OwnStream beside_training;
      write(copy);
    } catch (...) {
      failure_ = std::current_exception();
    }
    copy = {};
  });
}

void BackgroundSave::wait() {
  if (thread_.joinable()) thread_.join();
  if (const std::exception_ptr failure = std::exchange(failure_, nullptr)) std::rethrow_exception(failure);
}

}  // namespace mmfree
