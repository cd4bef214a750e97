#include "tests/support/interpose.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace mmfree::interpose {
namespace {

std::atomic<Watch*> watching{nullptr};
__attribute__((tls_model("initial-exec"))) thread_local bool inside = false;

/// libc's own `name`. Without a guarded static: malloc runs before there are any, and finding a symbol twice is
/// harmless.
template <class F>
F* real(F*& found, const char* name) {
  if (!found) found = reinterpret_cast<F*>(dlsym(RTLD_NEXT, name));
  return found;
}

Verdict ask(Watch* watch, const Call& call) {
  inside = true;
  const Verdict verdict = watch->before(call);
  inside = false;
  return verdict;
}

/// Makes a call of at most `size` bytes by `make(size)`, or not, as the watch says.
template <class Make>
int64_t pass(const Call& call, Make&& make) {
  Watch* watch = inside ? nullptr : watching.load();
  if (!watch) return make(call.size);
  const Verdict verdict = ask(watch, call);
  if (verdict.error && call.op == Op::close) make(call.size);  // the kernel frees the descriptor in any case
  const int64_t result = verdict.error ? -1 : make(std::min(call.size, verdict.most));
  const int error = verdict.error ? verdict.error : errno;
  inside = true;
  watch->after(call, result);
  inside = false;
  errno = error;
  return result;
}

/// The console opens a pipe once more to write without waiting. Under a watch it writes to the pipe itself, which is
/// not watched.
bool reopens(const char* path, int flags) {
  return watching.load() && (flags & O_WRONLY) && std::strncmp(path, "/proc/self/fd/", 14) == 0;
}

bool watched() { return watching.load(); }

template <class Make>
void* pass_allocation(size_t size, Make&& make) {
  Watch* watch = inside ? nullptr : watching.load();
  if (!watch || !ask(watch, {.op = Op::allocate, .size = size}).error) return make();
  errno = ENOMEM;
  return nullptr;
}

}  // namespace

const char* name_of(Op op) {
  static const char* const names[kOps] = {"open",      "close",     "read",   "pread", "write",  "pwrite", "fsync",
                                          "fdatasync", "ftruncate", "rename", "mkdir", "unlink", "mmap",   "allocate"};
  return names[int(op)];
}

void set_watch(Watch* watch) { watching = watch; }

}  // namespace mmfree::interpose

using mmfree::interpose::Call;
using mmfree::interpose::Op;
using mmfree::interpose::pass;
using mmfree::interpose::pass_allocation;
using mmfree::interpose::real;

// Each function of libc by its two names: the second is what 64-bit file offsets may be compiled to.
#define MMFREE_TWICE(define, name) define(name) define(name##64)

#define MMFREE_OPEN(name)                                                                                           \
  int name(const char* path, int flags, ...) {                                                                      \
    static int (*found)(const char*, int, ...);                                                                     \
    va_list rest;                                                                                                   \
    va_start(rest, flags);                                                                                          \
    const unsigned mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, unsigned) : 0;                               \
    va_end(rest);                                                                                                   \
    if (mmfree::interpose::reopens(path, flags)) return errno = ENXIO, -1;                                          \
    return int(                                                                                                     \
        pass({.op = Op::open, .path = path, .creates = (flags & O_CREAT) != 0, .appends = (flags & O_APPEND) != 0}, \
             [&](size_t) { return real(found, #name)(path, flags, mode); }));                                       \
  }
#define MMFREE_OPENAT(name)                                                                                       \
  int name(int at, const char* path, int flags, ...) {                                                            \
    static int (*found)(int, const char*, int, ...);                                                              \
    va_list rest;                                                                                                 \
    va_start(rest, flags);                                                                                        \
    const unsigned mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, unsigned) : 0;                             \
    va_end(rest);                                                                                                 \
    return int(pass({.op = Op::open, .fd = at, .path = path, .creates = (flags & O_CREAT) != 0, .library = true}, \
                    [&](size_t) { return real(found, #name)(at, path, flags, mode); }));                          \
  }
#define MMFREE_PREAD(name)                                                        \
  ssize_t name(int fd, void* to, size_t size, off_t offset) {                     \
    static ssize_t (*found)(int, void*, size_t, off_t);                           \
    return pass({.op = Op::pread, .fd = fd, .size = size, .offset = offset},      \
                [&](size_t n) { return real(found, #name)(fd, to, n, offset); }); \
  }
#define MMFREE_PWRITE(name)                                                                  \
  ssize_t name(int fd, const void* from, size_t size, off_t offset) {                        \
    static ssize_t (*found)(int, const void*, size_t, off_t);                                \
    return pass({.op = Op::pwrite, .fd = fd, .bytes = from, .size = size, .offset = offset}, \
                [&](size_t n) { return real(found, #name)(fd, from, n, offset); });          \
  }
#define MMFREE_FTRUNCATE(name)                                              \
  int name(int fd, off_t size) noexcept {                                   \
    static int (*found)(int, off_t);                                        \
    return int(pass({.op = Op::ftruncate, .fd = fd, .size = size_t(size)},  \
                    [&](size_t) { return real(found, #name)(fd, size); })); \
  }

extern "C" {

MMFREE_TWICE(MMFREE_OPEN, open)
MMFREE_TWICE(MMFREE_OPENAT, openat)
MMFREE_TWICE(MMFREE_PREAD, pread)
MMFREE_TWICE(MMFREE_PWRITE, pwrite)
MMFREE_TWICE(MMFREE_FTRUNCATE, ftruncate)

int close(int fd) {
  static int (*found)(int);
  return int(pass({.op = Op::close, .fd = fd}, [&](size_t) { return real(found, "close")(fd); }));
}

ssize_t read(int fd, void* to, size_t size) {
  static ssize_t (*found)(int, void*, size_t);
  return pass({.op = Op::read, .fd = fd, .size = size}, [&](size_t n) { return real(found, "read")(fd, to, n); });
}

ssize_t write(int fd, const void* from, size_t size) {
  static ssize_t (*found)(int, const void*, size_t);
  if (fd <= STDERR_FILENO) return real(found, "write")(fd, from, size);  // messages are not what is tested
  return pass({.op = Op::write, .fd = fd, .bytes = from, .size = size},
              [&](size_t n) { return real(found, "write")(fd, from, n); });
}

/// What waits before it tries again does not wait under a watch.
int nanosleep(const timespec* time, timespec* left) {
  static int (*found)(const timespec*, timespec*);
  return mmfree::interpose::watched() ? 0 : real(found, "nanosleep")(time, left);
}

int fsync(int fd) {
  static int (*found)(int);
  return int(pass({.op = Op::fsync, .fd = fd}, [&](size_t) { return real(found, "fsync")(fd); }));
}

int fdatasync(int fd) {
  static int (*found)(int);
  return int(pass({.op = Op::fdatasync, .fd = fd}, [&](size_t) { return real(found, "fdatasync")(fd); }));
}

int rename(const char* from, const char* to) noexcept {
  static int (*found)(const char*, const char*);
  return int(pass({.op = Op::rename, .path = from, .to = to}, [&](size_t) { return real(found, "rename")(from, to); }));
}

int renameat2(int from_at, const char* from, int to_at, const char* to, unsigned flags) noexcept {
  static int (*found)(int, const char*, int, const char*, unsigned);
  return int(pass({.op = Op::rename, .path = from, .to = to, .exchanges = (flags & RENAME_EXCHANGE) != 0},
                  [&](size_t) { return real(found, "renameat2")(from_at, from, to_at, to, flags); }));
}

int mkdir(const char* path, mode_t mode) noexcept {
  static int (*found)(const char*, mode_t);
  return int(pass({.op = Op::mkdir, .path = path}, [&](size_t) { return real(found, "mkdir")(path, mode); }));
}

int unlink(const char* path) noexcept {
  static int (*found)(const char*);
  return int(pass({.op = Op::unlink, .path = path}, [&](size_t) { return real(found, "unlink")(path); }));
}

int unlinkat(int at, const char* path, int flags) noexcept {
  static int (*found)(int, const char*, int);
  return int(pass({.op = Op::unlink, .fd = at, .path = path},
                  [&](size_t) { return real(found, "unlinkat")(at, path, flags); }));
}

int remove(const char* path) noexcept {
  static int (*found)(const char*);
  return int(pass({.op = Op::unlink, .path = path}, [&](size_t) { return real(found, "remove")(path); }));
}

void* mmap(void* at, size_t size, int protection, int flags, int fd, off_t offset) noexcept {
  static void* (*found)(void*, size_t, int, int, int, off_t);
  void* result = MAP_FAILED;
  pass({.op = Op::mmap, .fd = fd, .size = size, .offset = offset}, [&](size_t) {
    result = real(found, "mmap")(at, size, protection, flags, fd, offset);
    return result == MAP_FAILED ? -1 : 0;
  });
  return result;
}

// A sanitizer brings its own allocator, which must keep all of these together.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

void* malloc(size_t size) {
  static void* (*found)(size_t);
  return pass_allocation(size, [&] { return real(found, "malloc")(size); });
}

void* calloc(size_t count, size_t size) {
  static void* (*found)(size_t, size_t);
  return pass_allocation(count * size, [&] { return real(found, "calloc")(count, size); });
}

void* realloc(void* block, size_t size) {
  static void* (*found)(void*, size_t);
  return pass_allocation(size, [&] { return real(found, "realloc")(block, size); });
}

void* aligned_alloc(size_t alignment, size_t size) {
  static void* (*found)(size_t, size_t);
  return pass_allocation(size, [&] { return real(found, "aligned_alloc")(alignment, size); });
}

int posix_memalign(void** block, size_t alignment, size_t size) {
  static int (*found)(void**, size_t, size_t);
  int status = ENOMEM;
  pass_allocation(size, [&] {
    status = real(found, "posix_memalign")(block, alignment, size);
    return *block;
  });
  return status;
}

#endif

}  // extern "C"
