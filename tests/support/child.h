#pragma once
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <stdexcept>
#include <string>

#include "core/error.h"
#include "core/system/report.h"

namespace mmfree {

/// Sanitizers bring an allocator of their own, which takes address space, and files, at will.
#if defined(__has_feature)  // clang
inline constexpr bool kHasItsOwnAllocator = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kHasItsOwnAllocator = true;
#else
inline constexpr bool kHasItsOwnAllocator = false;
#endif

/// How a child process ended and what it wrote to stderr.
struct Ended {
  int status = -1;  ///< of exit; -1 if a signal ended it
  int signal = 0;
  std::string err;

  bool ok() const { return status == 0; }
  std::string describe() const {
    if (signal == SIGALRM) return "hung";
    return (signal ? concat("died of signal ", signal) : concat("exit ", status)) + ", stderr: " + err;
  }
};

/// Memory that parent and children share, zeroed at first.
template <class T>
class Shared {
 public:
  Shared()
      : value_(static_cast<T*>(mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {
    if (value_ == MAP_FAILED) throw std::runtime_error("mmap failed");
  }
  ~Shared() { munmap(value_, sizeof(T)); }
  Shared(const Shared&) = delete;
  T* operator->() const { return value_; }
  T& operator*() const { return *value_; }

 private:
  T* value_;
};

/// Runs `body` in a child process that leaves through exit(), with `seconds` to do it in; meanwhile `beside`, if given,
/// runs in this one. The child has no thread but the caller's.
inline Ended in_child(const std::function<void()>& body, unsigned seconds,
                      const std::function<void(pid_t)>& beside = nullptr) {
  std::fflush(stdout);  // or the child would write it again
  const int err = memfd_create("stderr", 0);
  const pid_t child = err < 0 ? -1 : fork();
  if (child < 0) throw std::runtime_error("cannot start a child process");
  if (child == 0) {
    const rlimit none{0, 0};
    setrlimit(RLIMIT_CORE, &none);
    dup2(err, 2);
    alarm(seconds);
    std::exit(run_reporting(body));
  }
  if (beside) beside(child);
  int status = 0;
  waitpid(child, &status, 0);
  Ended ended;
  if (WIFSIGNALED(status)) ended.signal = WTERMSIG(status);
  if (WIFEXITED(status)) ended.status = WEXITSTATUS(status);
  char text[2048];
  const ssize_t n = pread(err, text, sizeof text, 0);
  ended.err.assign(text, size_t(n < 0 ? 0 : n));
  close(err);
  return ended;
}

}  // namespace mmfree
