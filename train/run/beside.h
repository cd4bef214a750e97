#pragma once
#include <functional>
#include <optional>

#include "core/gpu.h"
#include "core/op_watch.h"

namespace mmfree {

/// Work beside what the compute stream does: on a side stream of the GPU, or in its place, in dry runs, on the CPU, and
/// in watched steps, which do one after the other.
class Beside {
 public:
  explicit Beside(bool on) {
    if (on) side_.emplace();
  }
  bool on() const { return side_.has_value(); }
  /// See gpu::SideStream.
  void run(const std::function<void()>& work) {
    if (side_ && !op_watch) return side_->run(work);
    work();
  }
  void join() {
    if (side_ && !op_watch) side_->join();
  }
  /// What is run here next waits for the newest work of `other`.
  void follow(const Beside& other) {
    if (side_ && !op_watch) side_->follow(*other.side_);
  }
  /// All that were not joined yet.
  void join_all() {
    if (side_ && !op_watch) side_->join_all();
  }

 private:
  std::optional<gpu::SideStream> side_;
};

}  // namespace mmfree
