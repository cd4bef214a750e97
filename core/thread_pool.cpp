#include "core/thread_pool.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace mmfree::threads {
namespace {

thread_local int own_index = 0;
thread_local bool working = false;  ///< inside of a loop

/// Tells the processor that this thread is waiting.
inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Waits until `value` is not `old`: awake for a while, then asleep.
template <class T>
void wait_while(const std::atomic<T>& value, T old) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(kSpinMicroseconds);
  do
    for (int i = 0; i < 16; ++i) {
      if (value.load(std::memory_order_acquire) != old) return;
      relax();
    }
  while (std::chrono::steady_clock::now() < end);
  value.wait(old, std::memory_order_acquire);
}

class Pool {
 public:
  /// Returns false if another thread is running a loop.
  bool run(int threads, int64_t items, void (*call)(const void*, int64_t), const void* body) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return false;
    start(threads - 1);
    call_ = call, body_ = body, items_ = items, threads_ = threads;
    next_.store(0, std::memory_order_relaxed);
    inside_.store(kOpen, std::memory_order_release);
    loops_.fetch_add(1);
    loops_.notify_all();
    work();
    // Nobody comes in any more; those who are in finish the items that they took.
    for (uint32_t left = inside_.fetch_and(~kOpen, std::memory_order_acq_rel) & ~kOpen; left;
         left = inside_.load(std::memory_order_acquire))
      wait_while(inside_, left);
    return true;
  }

 private:
  static constexpr uint32_t kOpen = uint32_t(1) << 31;

  /// Starts threads until there are `count`, or as many as the system gives.
  void start(int count) try {
    while (int(workers_.size()) < count) {
      const int index = int(workers_.size()) + 1;
      workers_.emplace_back([this, index, seen = loops_.load(std::memory_order_relaxed)] { serve(index, seen); });
      workers_.back().detach();
    }
  } catch (const std::system_error&) {
  }

  void serve(int index, uint32_t seen) {
    own_index = index, working = true;
    for (;; seen = loops_.load(std::memory_order_acquire)) {
      wait_while(loops_, seen);
      uint32_t in = inside_.load(std::memory_order_relaxed);
      do {
        if (!(in & kOpen)) break;
      } while (!inside_.compare_exchange_weak(in, in + 1, std::memory_order_acq_rel, std::memory_order_relaxed));
      if (!(in & kOpen)) continue;
      if (index < threads_) work();
      if (inside_.fetch_sub(1) == 1) inside_.notify_one();
    }
  }

  void work() {
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < items_;) call_(body_, i);
  }

  std::mutex mutex_;  ///< held while a loop runs
  std::vector<std::thread> workers_;
  // The loop: written while nobody is inside.
  void (*call_)(const void*, int64_t) = nullptr;
  const void* body_ = nullptr;
  int64_t items_ = 0;
  int threads_ = 0;
  alignas(64) std::atomic<int64_t> next_ = 0;     ///< the first item that nobody took
  alignas(64) std::atomic<uint32_t> inside_ = 0;  ///< workers in the loop; kOpen: they may come in
  alignas(64) std::atomic<uint32_t> loops_ = 0;   ///< so far
};

/// Never destroyed: its threads live until the process ends.
Pool& pool() {
  static Pool& only = *new Pool;
  return only;
}

}  // namespace

int limit() { return working ? own_index + 1 : omp_get_max_threads(); }

int index() { return own_index; }

void run(int64_t items, void (*call)(const void*, int64_t), const void* body, int threads) {
  const bool outer = std::exchange(working, true);
  threads = outer ? 1 : int(std::min<int64_t>(threads > 0 ? threads : omp_get_max_threads(), items));
  if (threads < 2 || !pool().run(threads, items, call, body))
    for (int64_t i = 0; i < items; ++i) call(body, i);
  working = outer;
}

}  // namespace mmfree::threads
