#include "core/system/shared_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <random>

#include "core/error.h"
#include "core/system/files.h"

namespace mmfree {
namespace {

[[noreturn]] void fail(const std::string& name, const char* what) {
  throw Error(concat("shared memory '", name, "': ", what, ": ", error_text(errno)));
}

}  // namespace

SharedFile::SharedFile(size_t bytes) : name_(concat("/mmfree-", ::getpid(), '-', std::random_device()())) {
  const Fd file(::shm_open(name_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!file.is_open()) fail(name_, "cannot be made");
  if (::ftruncate(file.get(), off_t(bytes)) == 0) return;
  const int error = errno;
  ::shm_unlink(name_.c_str());
  errno = error;
  fail(name_, "has no room");
}

SharedFile::~SharedFile() { ::shm_unlink(name_.c_str()); }

SharedPages::SharedPages(const std::string& name, size_t bytes) : bytes_(bytes) {
  const Fd file(::shm_open(name.c_str(), O_RDWR | O_CLOEXEC, 0));
  if (!file.is_open()) fail(name, "cannot be opened");
  struct stat about;
  if (::fstat(file.get(), &about) != 0) fail(name, "cannot be examined");
  MMFREE_CHECK(Error, size_t(about.st_size) == bytes, "shared memory '", name, "' has ", about.st_size,
               " bytes, expected ", bytes);
  data_ = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  if (data_ == MAP_FAILED) fail(name, "cannot be mapped");
}

SharedPages::~SharedPages() { ::munmap(data_, bytes_); }

}  // namespace mmfree
