#pragma once
#include <omp.h>

#include <atomic>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

/// Threads that go through many short phases of shared work together.
namespace mmfree::cpu {

/// What the threads of a team have in common.
class Team {
 public:
  explicit Team(int threads) : threads_(threads) {}
  Team(const Team&) = delete;
  int threads() const { return threads_; }

 private:
  friend class Member;
  /// Times that a waiting thread looks before it sleeps: some 0.1 ms.
  static constexpr int kLooks = 2000;

  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
  /// Returns once all threads have called it.
  void meet() {
    const uint32_t now = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(now + 1, std::memory_order_release);
      phase_.notify_all();
      return;
    }
    for (int i = 0; i < kLooks; ++i) {
      if (phase_.load(std::memory_order_acquire) != now) return;
      pause();
    }
    phase_.wait(now, std::memory_order_acquire);
  }

  const int threads_;
  alignas(64) std::atomic<int64_t> next_ = 0;  ///< number of the next task, counted over all phases
  alignas(64) std::atomic<int> arrived_ = 0;
  alignas(64) std::atomic<uint32_t> phase_ = 0;
};

/// One thread's view of its team.
class Member {
 public:
  Member(Team& team, int index) : team_(team), index_(index) {}
  int index() const { return index_; }
  int threads() const { return team_.threads(); }

  /// Calls body(i) for every i in [0, n) on one thread of the team each, in ascending order on each thread. All members
  /// make the same calls in the same order; each call returns when all bodies are done.
  template <class Body>
  void share(int64_t n, Body&& body) {
    if (n <= 0) return;
    if (team_.threads_ == 1) {
      for (int64_t i = 0; i < n; ++i) body(i);
      return;
    }
    for (int64_t i; (i = team_.next_.fetch_add(1, std::memory_order_relaxed) - first_) < n;) body(i);
    first_ += n + team_.threads_;  // each thread has taken one number too many
    team_.meet();
  }

 private:
  Team& team_;
  const int index_;
  int64_t first_ = 0;
};

/// Calls body(Member&) on each of `threads` threads, those of OpenMP; on this one alone if it is 1.
template <class Body>
void with_team(int threads, Body&& body) {
  if (threads <= 1) {
    Team alone(1);
    Member member(alone, 0);
    return body(member);
  }
  alignas(64) char place[sizeof(Team)];
  Team* team = nullptr;
#pragma omp parallel num_threads(threads)
  {
#pragma omp single
    team = new (place) Team(omp_get_num_threads());  // OpenMP may give fewer
    Member member(*team, omp_get_thread_num());
    body(member);
  }
  team->~Team();
}

}  // namespace mmfree::cpu
