#pragma once

namespace mmfree {

/// For calls into a library that does not survive a failed allocation: while one lives, an allocation that fails in
/// this thread ends the process, with Exit::io and one line that names `about` and `library`; both outlive it.
/// Sanitizers bring an allocator of their own, under which it does nothing.
class MemoryGuard {
 public:
  MemoryGuard(const char* library, const char* about);
  ~MemoryGuard();
  MemoryGuard(const MemoryGuard&) = delete;

  const char* library() const { return library_; }
  const char* about() const { return about_; }

 private:
  const char *library_, *about_;
  const MemoryGuard* outer_;
};

}  // namespace mmfree
