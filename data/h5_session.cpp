#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>

#include "core/error.h"
#include "data/h5_file.h"

namespace mmfree::h5 {
namespace {

thread_local const char* working_on = nullptr;

/// Passes on what an allocation gave, unless it gave nothing to HDF5. Uses no memory itself.
void* checked(void* block, size_t bytes) {
  if (block || !bytes || !working_on) return block;
  char line[4400];
  const int n = std::snprintf(line, sizeof line, "mmfree: %.4096s: out of memory: hdf5 could not get %zu bytes\n",
                              working_on, bytes);
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

Session::Session(const std::string& path) : outer_(working_on) {
  working_on = path.c_str();
  static std::once_flag once;
  std::call_once(once, [] {
    H5dont_atexit();
    H5open();
    H5PLset_loading_state(0);
  });
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

Session::~Session() { working_on = outer_; }

}  // namespace mmfree::h5

// HDF5 takes its memory from these, and has no other way to learn of a failure in time. Sanitizers bring their own.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

extern "C" {

void* malloc(size_t bytes) noexcept {
  static void* (*found)(size_t);
  return mmfree::h5::checked(mmfree::h5::next(found, "malloc")(bytes), bytes);
}

void* calloc(size_t count, size_t bytes) noexcept {
  static void* (*found)(size_t, size_t);
  return mmfree::h5::checked(mmfree::h5::next(found, "calloc")(count, bytes), count * bytes);
}

void* realloc(void* block, size_t bytes) noexcept {
  static void* (*found)(void*, size_t);
  return mmfree::h5::checked(mmfree::h5::next(found, "realloc")(block, bytes), bytes);
}

}  // extern "C"

#endif
