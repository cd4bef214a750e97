#include "core/system/memory_guard.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "core/error.h"

namespace mmfree {
namespace {

thread_local const MemoryGuard* guard = nullptr;

/// Passes on what an allocation gave, unless it gave nothing to a guarded library. Uses no memory itself.
void* checked(void* block, size_t bytes) {
  if (block || !bytes || !guard) return block;
  char line[4400];
  const int n = std::snprintf(line, sizeof line, "mmfree: %.4096s: out of memory: %s could not get %zu bytes\n",
                              guard->about(), guard->library(), bytes);
  if (::write(STDERR_FILENO, line, size_t(n)) < 0) _exit(int(Exit::io));
  _exit(int(Exit::io));
}

/// The next definition of `name` after this program's: libc's, or that of an allocator loaded before it. No guarded
/// static: allocations come before there are any, and finding it twice is harmless.
template <class F>
F* next(F*& found, const char* name) {
  if (!found) found = reinterpret_cast<F*>(dlsym(RTLD_NEXT, name));
  return found;
}

}  // namespace

MemoryGuard::MemoryGuard(const char* library, const char* about) : library_(library), about_(about), outer_(guard) {
  guard = this;
}

MemoryGuard::~MemoryGuard() { guard = outer_; }

}  // namespace mmfree

#if defined(__has_feature)  // clang
#define MMFREE_SANITIZED (__has_feature(address_sanitizer) || __has_feature(thread_sanitizer))
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MMFREE_SANITIZED 1
#else
#define MMFREE_SANITIZED 0
#endif

// Libraries take their memory from these, and we have no other way to learn of a failure in time.
#if !MMFREE_SANITIZED

extern "C" {

void* malloc(size_t bytes) noexcept {
  static void* (*found)(size_t);
  return mmfree::checked(mmfree::next(found, "malloc")(bytes), bytes);
}

void* calloc(size_t count, size_t bytes) noexcept {
  static void* (*found)(size_t, size_t);
  return mmfree::checked(mmfree::next(found, "calloc")(count, bytes), count * bytes);
}

void* realloc(void* block, size_t bytes) noexcept {
  static void* (*found)(void*, size_t);
  return mmfree::checked(mmfree::next(found, "realloc")(block, bytes), bytes);
}

}  // extern "C"

#endif
