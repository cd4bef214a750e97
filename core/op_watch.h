#pragma once
#include <chrono>
#include <typeinfo>
#include <utility>

namespace mmfree {

/// Sees every op that the CPU computes, with its duration: for profiles of whole steps.
class OpWatch {
 public:
  virtual ~OpWatch() = default;
  /// `args`: the kernel's arguments, an object of `type`; its pointers may be read and written by others already.
  virtual void ran(const char* op, const std::type_info& type, const void* args, double seconds) = 0;
};

/// Who sees the ops of this process; null: nobody, which costs a comparison per op.
inline OpWatch* op_watch = nullptr;

/// Runs a CPU kernel under the eyes of op_watch.
template <class Args>
void run_on_cpu(const char* op, void (*kernel)(const Args&), const Args& args) {
  if (!op_watch) return kernel(args);
  const auto begin = std::chrono::steady_clock::now();
  kernel(args);
  op_watch->ran(op, typeid(Args), &args,
                std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
}

/// Runs one with several arguments, which nobody watches.
template <class... Params, class... Args>
  requires(sizeof...(Params) > 1)
void run_on_cpu(const char*, void (*kernel)(Params...), Args&&... args) {
  kernel(std::forward<Args>(args)...);
}

}  // namespace mmfree
