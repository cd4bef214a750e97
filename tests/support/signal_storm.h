#pragma once
#include <pthread.h>

#include <atomic>
#include <csignal>
#include <cstdint>
#include <thread>

namespace mmfree {

/// While alive, the thread that made it is sent one signal after the other. A handler writes its frame where it finds
/// the stack pointer, so code that keeps it anywhere but on the stack has memory written over.
class SignalStorm {
 public:
  SignalStorm() {
    pthread_attr_t attributes;
    void* begin = nullptr;
    size_t bytes = 0;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &begin, &bytes);
    pthread_attr_destroy(&attributes);
    stack_begin_ = reinterpret_cast<uintptr_t>(begin);
    stack_end_ = stack_begin_ + bytes;
    arrived_ = elsewhere_ = 0;
    before_ = std::signal(SIGURG, arrive);
    sender_ = std::thread([this, target = pthread_self()] {
      while (!done_) pthread_kill(target, SIGURG);
    });
  }
  ~SignalStorm() {
    done_ = true;
    sender_.join();
    std::signal(SIGURG, before_);
  }
  SignalStorm(const SignalStorm&) = delete;

  /// Signals handled so far.
  int64_t arrived() const { return arrived_; }
  /// How many of them found the stack pointer outside the thread's stack.
  int64_t elsewhere() const { return elsewhere_; }

 private:
  static void arrive(int) {
    const auto at = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));  // sanitizers move variables elsewhere
    elsewhere_ += at < stack_begin_ || at >= stack_end_;
    ++arrived_;
  }

  inline static uintptr_t stack_begin_ = 0, stack_end_ = 0;
  inline static std::atomic<int64_t> arrived_ = 0, elsewhere_ = 0;
  void (*before_)(int) = nullptr;
  std::atomic<bool> done_ = false;
  std::thread sender_;
};

}  // namespace mmfree
