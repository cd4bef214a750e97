#include "train/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "core/error.h"

namespace mmfree {

Fd& Fd::operator=(Fd&& other) noexcept {
  if (this != &other) {
    close();
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

Fd::~Fd() { close(); }

bool Fd::close() {
  const int fd = std::exchange(fd_, -1);
  return fd < 0 || ::close(fd) == 0;
}

Fd open_input(const std::string& path) {
  Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  MMFREE_CHECK(MissingError, file.is_open(), path, ": cannot open: ", std::strerror(errno));
  struct stat info;
  MMFREE_CHECK(IoError, ::fstat(file.get(), &info) == 0, path, ": ", std::strerror(errno));
  MMFREE_CHECK(DataError, S_ISREG(info.st_mode), path, ": not a regular file");
  return file;
}

int64_t size_of_file(const Fd& file, const std::string& path) {
  struct stat info;
  MMFREE_CHECK(IoError, ::fstat(file.get(), &info) == 0, path, ": ", std::strerror(errno));
  return info.st_size;
}

void read_exactly(const Fd& file, const std::string& path, int64_t offset, void* to, int64_t size) {
  char* out = static_cast<char*>(to);
  while (size > 0) {
    const ssize_t n = ::pread(file.get(), out, size_t(std::min<int64_t>(size, 1 << 30)), offset);
    if (n < 0 && errno == EINTR) continue;
    MMFREE_CHECK(IoError, n >= 0, path, ": read at byte ", offset, " failed: ", std::strerror(errno));
    MMFREE_CHECK(DataError, n > 0, path, ": ends at byte ", offset, ", ", size, " bytes too early");
    out += n, offset += n, size -= n;
  }
}

std::string read_text(const std::string& path, int64_t most) {
  const Fd file = open_input(path);
  const int64_t size = size_of_file(file, path);
  MMFREE_CHECK(DataError, size <= most, path, ": has ", size, " bytes, expected at most ", most);
  std::string text(size_t(size), '\0');
  read_exactly(file, path, 0, text.data(), size);
  return text;
}

void sync_directory(const std::string& path) {
  Fd directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  MMFREE_CHECK(IoError, directory.is_open() && ::fsync(directory.get()) == 0, path,
               ": cannot sync the directory: ", std::strerror(errno));
}

DurableFile::DurableFile(std::string path)
    : path_(std::move(path)),
      temporary_(path_ + ".tmp"),
      file_(::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666)) {
  MMFREE_CHECK(CreateError, file_.is_open(), temporary_, ": cannot create: ", std::strerror(errno));
}

DurableFile::~DurableFile() {
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void DurableFile::write(const void* data, size_t size) {
  const char* from = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t n = ::write(file_.get(), from, std::min<size_t>(size, 1 << 30));
    if (n < 0 && errno == EINTR) continue;
    MMFREE_CHECK(IoError, n > 0, temporary_, ": write failed: ", std::strerror(errno));
    from += n, size -= size_t(n);
  }
}

void DurableFile::commit() {
  MMFREE_CHECK(IoError, ::fsync(file_.get()) == 0, temporary_, ": sync failed: ", std::strerror(errno));
  MMFREE_CHECK(IoError, file_.close(), temporary_, ": close failed: ", std::strerror(errno));
  MMFREE_CHECK(IoError, ::rename(temporary_.c_str(), path_.c_str()) == 0, path_,
               ": cannot rename the finished file: ", std::strerror(errno));
  temporary_.clear();
  const std::string parent = std::filesystem::path(path_).parent_path().string();
  sync_directory(parent.empty() ? "." : parent);
}

void write_text(const std::string& path, const std::string& text) {
  DurableFile file(path);
  file.write(text.data(), text.size());
  file.commit();
}

}  // namespace mmfree
