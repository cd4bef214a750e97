#include "train/run/background_save.h"

#include <omp.h>

#include <new>
#include <system_error>
#include <utility>

#include "core/gpu.h"

namespace mmfree {
namespace {

/// A copy in an arena of its own, because a recorded step overwrites memory that is free in the step's arena. Undefined
/// if there is no room.
FlatState snapshot(const FlatState& state) {
  const bool gpu = state.values.device() == Device::cuda;
  const auto bytes = (1 + state.states.size()) * size_t(state.values.bytes()) + size_t(state.carried.bytes());
  if (!gpu && bytes > available_host_memory() / 2) return {};
  try {
    const ArenaScope own(gpu ? Arena::gpu() : Arena::host());
    FlatState copies{state.values.clone(), {}, state.carried.copy(), state.share};
    for (const OptimizerState& s : state.states) copies.states.push_back({s.name, s.tensor.clone()});
    if (gpu) gpu::synchronize();
    return copies;
  } catch (const OutOfMemory&) {
    return {};
  } catch (const std::bad_alloc&) {
    return {};
  }
}

}  // namespace

BackgroundSave::~BackgroundSave() {
  if (thread_.joinable()) thread_.join();
}

void BackgroundSave::start(const FlatState& state, std::function<void(const FlatState&)> write) {
  MMFREE_CHECK(Error, !pending(), "background save: the save before is still pending");
  const auto save = [write = std::move(write)](const FlatState& from) {
    try {
      write(from);
    } catch (const std::bad_alloc&) {
      throw OutOfMemory("out of memory while saving a checkpoint");
    }
  };
  try {
    if (FlatState copy = snapshot(state); copy.values.defined()) {
      done_ = false;
      thread_ = std::thread([this, copy = std::exchange(copy, {}), save]() mutable {
        omp_set_num_threads(1);  // the cores are busy with training
        try {
          std::optional<gpu::OwnStream> beside_training;
          if (copy.values.device() == Device::cuda) beside_training.emplace();
          save(copy);
        } catch (...) {
          failure_ = std::current_exception();
        }
        copy = {};
        done_ = true;
      });
      return;
    }
  } catch (const std::system_error&) {  // no thread is available: training waits
  } catch (const std::bad_alloc&) {
  }
  save(state);
}

void BackgroundSave::wait() {
  if (thread_.joinable()) thread_.join();
  if (const std::exception_ptr failure = std::exchange(failure_, nullptr)) std::rethrow_exception(failure);
}

bool BackgroundSave::poll() {
  if (!pending() || !done_) return false;
  wait();
  return true;
}

}  // namespace mmfree
