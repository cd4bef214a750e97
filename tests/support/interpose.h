#pragma once
#include <cstddef>
#include <cstdint>

/// Stands between the program with all its libraries and libc: file calls and allocations can be seen, changed, failed.
/// A shared library: whatever is linked with it is watched.
namespace mmfree::interpose {

enum class Op : uint8_t {
  open,
  close,
  read,
  pread,
  write,
  pwrite,
  fsync,
  fdatasync,
  ftruncate,
  rename,
  mkdir,
  unlink,
  mmap,
  allocate,  ///< malloc, calloc, realloc, posix_memalign, aligned_alloc; operator new calls one of them
};
inline constexpr int kOps = 14;
const char* name_of(Op op);

/// One call as it was made. What an operation lacks keeps its default.
struct Call {
  Op op;
  int fd = -1;                  ///< of open and unlink: the directory that `path` may be relative to
  const char* path = nullptr;   ///< of open, mkdir, unlink; the old one of rename
  const char* to = nullptr;     ///< the new one of rename
  const void* bytes = nullptr;  ///< of write and pwrite
  size_t size = 0;              ///< asked to be transferred or allocated; the new size of ftruncate
  int64_t offset = -1;          ///< of pread and pwrite
  bool creates = false;         ///< open with O_CREAT
  bool appends = false;         ///< open with O_APPEND
  bool exchanges = false;       ///< rename with RENAME_EXCHANGE
  bool library = false;         ///< open by openat, as only the C++ library does
};

/// What becomes of a call: it is made, it fails with an errno, or it transfers at most so many bytes.
struct Verdict {
  int error = 0;
  size_t most = SIZE_MAX;
};

/// Sees the calls of all threads; calls that it makes itself pass unseen.
class Watch {
 public:
  virtual ~Watch() = default;
  virtual Verdict before(const Call&) { return {}; }
  virtual void after(const Call&, int64_t) {}  ///< with the result, -1 for an error; not called for allocations
};

/// `watch` sees all calls from now on; nullptr ends that.
void set_watch(Watch* watch);

}  // namespace mmfree::interpose
