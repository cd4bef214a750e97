#pragma once
#include <chrono>
#include <typeinfo>
#include <utility>

#include "core/device.h"

namespace mmfree {

/// One call of an op's kernel.
struct OpCall {
  const char* op;
  const std::type_info& type;  ///< of the kernel's arguments
  const void* args;            ///< these; their pointers may be read and written by others already
  Device device;
  double seconds;  ///< that the CPU took; 0 of a GPU, where it was launched, and in a dry run
};

/// Sees every op that this process computes or, in a dry run, would compute: for profiles of whole steps.
class OpWatch {
 public:
  virtual ~OpWatch() = default;
  virtual void starts(const char* /*op*/) {}
  virtual void ran(const OpCall& call) = 0;
  /// A part of a step begins, and ends: see WatchedRange. Parts nest.
  virtual void enters(const char* /*range*/) {}
  virtual void leaves() {}
};

/// Who sees the ops of this process; null: nobody, which costs a comparison per op.
inline OpWatch* op_watch = nullptr;

/// While alive, what the process computes belongs to the part of a step called `name`.
class WatchedRange {
 public:
  explicit WatchedRange(const char* name) : watch_(op_watch) {
    if (watch_) watch_->enters(name);
  }
  ~WatchedRange() {
    if (watch_) watch_->leaves();
  }
  WatchedRange(const WatchedRange&) = delete;

 private:
  OpWatch* watch_;
};

/// Runs a kernel, or launches it on a GPU, under the eyes of op_watch.
template <class Args>
void run_watched(Device device, const char* op, void (*kernel)(const Args&), const Args& args) {
  if (!op_watch) return kernel(args);
  op_watch->starts(op);
  const auto begin = std::chrono::steady_clock::now();
  kernel(args);
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
  op_watch->ran({op, typeid(Args), &args, device, device == Device::cpu ? taken.count() : 0});
}

/// Runs one with several arguments, which nobody watches.
template <class... Params, class... Args>
requires(sizeof...(Params) > 1) void run_watched(Device, const char*, void (*kernel)(Params...), Args&&... args) {
  kernel(std::forward<Args>(args)...);
}

/// Shows op_watch an op that a dry run leaves out.
template <class Args>
void leave_out(Device device, const char* op, const Args& args) {
  if (op_watch) op_watch->ran({op, typeid(Args), &args, device, 0});
}
template <class... Args>
requires(sizeof...(Args) > 1) void leave_out(Device, const char*, const Args&...) {}

}  // namespace mmfree
