#include "core/system/files.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <memory>
#include <thread>

#include "core/error.h"

namespace mmfree {

namespace fs = std::filesystem;

Fd& Fd::operator=(Fd&& other) noexcept {
  Fd moved(std::move(other));
  std::swap(fd_, moved.fd_);
  return *this;
}

Fd::~Fd() { close(); }

bool Fd::write(std::string_view bytes) const {
  while (!bytes.empty()) {
    const ssize_t n = restarted([&] { return ::write(fd_, bytes.data(), std::min<size_t>(bytes.size(), 1 << 30)); });
    if (n <= 0) return false;
    bytes.remove_prefix(size_t(n));
  }
  return true;
}

bool Fd::close() {
  const int fd = std::exchange(fd_, -1);
  return fd < 0 || ::close(fd) == 0 || errno == EINTR;  // an interrupted close has closed it
}

bool wait_to_retry(int error, int attempt) {
  constexpr int kPassing[] = {EIO, ESTALE, ENOMEM, EACCES, EAGAIN, ETIMEDOUT, ENFILE, EMFILE};
  constexpr int kMilliseconds[] = {10, 100, 400};
  if (attempt >= std::ssize(kMilliseconds) || std::ranges::find(kPassing, error) == std::end(kPassing)) return false;
  std::this_thread::sleep_for(std::chrono::milliseconds(kMilliseconds[attempt]));
  errno = error;
  return true;
}

bool leads_nowhere(const std::error_code& error) {
  for (const std::errc e :
       {std::errc::no_such_file_or_directory, std::errc::not_a_directory, std::errc::permission_denied,
        std::errc::filename_too_long, std::errc::too_many_symbolic_link_levels})
    if (error == e) return true;
  return false;
}

Fd open_input(const std::string& path) {
  Fd file(retried([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK); }));
  if (!file.is_open()) {
    const std::error_code error(errno, std::generic_category());
    MMFREE_CHECK(MissingError, !leads_nowhere(error), path, ": cannot open: ", error.message());
    throw IoError(concat(path, ": cannot open: ", error.message()));
  }
  struct stat info;
  MMFREE_CHECK(IoError, ::fstat(file.get(), &info) == 0, path, ": ", error_text(errno));
  MMFREE_CHECK(DataError, S_ISREG(info.st_mode), path, ": not a regular file; give the path of a file");
  return file;
}

int64_t size_of_file(const Fd& file, const std::string& path) {
  struct stat info;
  MMFREE_CHECK(IoError, ::fstat(file.get(), &info) == 0, path, ": ", error_text(errno));
  return info.st_size;
}

void read_exactly(const Fd& file, const std::string& path, int64_t offset, void* to, int64_t size) {
  char* out = static_cast<char*>(to);
  while (size > 0) {
    const ssize_t n =
        retried([&] { return ::pread(file.get(), out, size_t(std::min<int64_t>(size, 1 << 30)), offset); });
    MMFREE_CHECK(IoError, n >= 0, path, ": read at byte ", offset, " failed: ", error_text(errno));
    MMFREE_CHECK(DataError, n > 0, path, ": ends at byte ", offset, ", ", size, " bytes too early");
    out += n, offset += n, size -= n;
  }
}

std::string read_file(const std::string& path, int64_t most) {
  const Fd file = open_input(path);
  const int64_t size = size_of_file(file, path);
  MMFREE_CHECK(DataError, size <= most, path, ": has ", size, " bytes, expected at most ", most);
  std::string bytes(size_t(size), '\0');
  read_exactly(file, path, 0, bytes.data(), size);
  return bytes;
}

// Does not use std::filesystem: some implementations crash when they run out of memory.
std::vector<std::string> names_in(const std::string& directory) {
  const std::string place = directory.empty() ? "." : directory;
  std::unique_ptr<DIR, int (*)(DIR*)> entries(nullptr, ::closedir);
  (void)retried([&] {
    entries.reset(::opendir(place.c_str()));
    return entries ? 0 : -1;
  });
  const auto require = [&](bool ok) { MMFREE_CHECK(IoError, ok, place, ": cannot be listed: ", error_text(errno)); };
  std::vector<std::string> names;
  if (!entries) {
    struct stat info;
    const int error = errno;
    const bool absent = ::stat(place.c_str(), &info) != 0 && (errno == ENOENT || errno == ENOTDIR);
    errno = error;
    require(absent);
    return names;
  }
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(entries.get());
    if (!entry) break;
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
  }
  require(errno == 0);
  std::sort(names.begin(), names.end());
  return names;
}

void require_space(const std::string& path, int64_t bytes) {
  const std::string folder = fs::path(path).parent_path().string();
  struct statvfs info;
  if (::statvfs(folder.empty() ? "." : folder.c_str(), &info) != 0) return;  // creating the file will say why
  const auto free = double(info.f_bavail) * double(info.f_frsize);
  MMFREE_CHECK(IoError, double(bytes) <= free, path, ": needs ", (bytes >> 20) + 1, " MiB and the disk has ",
               int64_t(free) >> 20, " MiB free; make room or choose another disk");
}

namespace {
bool sync(const Fd& file) {
  return restarted([&] { return ::fsync(file.get()); }) == 0;
}
}  // namespace

void sync_directory(const std::string& path) {
  const char* name = path.empty() ? "." : path.c_str();
  const Fd directory(restarted([&] { return ::open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
  MMFREE_CHECK(IoError, directory.is_open() && sync(directory), name,
               ": cannot sync the directory: ", error_text(errno));
}

namespace {

std::vector<std::string> missing_directories(const std::string& path) {
  std::vector<std::string> missing;
  if (path.empty()) return missing;
  std::error_code ignored;
  for (auto p = fs::absolute(path).lexically_normal(); !fs::exists(p, ignored); p = p.parent_path())
    missing.push_back(p.string());
  return missing;
}

}  // namespace

NeededDirectory::NeededDirectory(const std::string& path) : NeededDirectory(missing_directories(path)) {
  for (auto p = made_.rbegin(); p != made_.rend(); ++p) {
    MMFREE_CHECK(CreateError, ::mkdir(p->c_str(), 0777) == 0 || errno == EEXIST, path,
                 ": cannot create the directory: ", error_text(errno));
    sync_directory(fs::path(*p).parent_path().string());
  }
  std::error_code ignored;
  MMFREE_CHECK(CreateError, path.empty() || fs::is_directory(path, ignored), path, ": is not a directory");
}

NeededDirectory::~NeededDirectory() {
  for (const std::string& p : made_) ::rmdir(p.c_str());
}

namespace {

bool is_number(std::string_view text) {
  return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
}

}  // namespace

std::string_view path_of_temporary(std::string_view name) {
  const size_t mark = name.rfind(kTemporaryMark);
  if (mark == name.npos) return {};
  const std::string_view numbers = name.substr(mark + kTemporaryMark.size());
  const size_t dash = numbers.find('-');
  if (dash == numbers.npos || !is_number(numbers.substr(0, dash)) || !is_number(numbers.substr(dash + 1))) return {};
  return name.substr(0, mark);
}

void take_attributes(const std::string& path, const std::string& old) {
  struct stat from = {}, to = {};
  if (::lstat(old.c_str(), &from) != 0 || ::lstat(path.c_str(), &to) != 0) return;
  if ((from.st_mode & S_IFMT) != (to.st_mode & S_IFMT) || S_ISLNK(to.st_mode)) return;
  const bool keeps_group = (from.st_uid == to.st_uid && from.st_gid == to.st_gid) ||
                           ::lchown(path.c_str(), from.st_uid, from.st_gid) == 0 ||
                           ::lchown(path.c_str(), uid_t(-1), from.st_gid) == 0;
  mode_t mode = from.st_mode & (S_ISDIR(to.st_mode) ? 07777 : 01777);
  if (!keeps_group) mode &= ~mode_t(070) | (mode & 07) << 3;
  ::chmod(path.c_str(), mode);
}

namespace {

/// Removes the temporary files and folders of `path` that nobody locks: their processes were killed.
void remove_left_over(const std::string& path) try {
  const fs::path folder = fs::path(path).parent_path();
  const std::string of = fs::path(path).filename().string();
  for (const std::string& name : names_in(folder.string())) {
    if (of.empty() || path_of_temporary(name) != of) continue;
    const fs::path left = folder / name;
    const Fd lock(::open(left.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW));
    std::error_code ignored;
    if (lock.is_open() && ::flock(lock.get(), LOCK_EX | LOCK_NB) == 0) fs::remove_all(left, ignored);
  }
} catch (const IoError&) {
  return;  // leftovers that cannot be listed must not stop the caller
}

std::string temporary_name(const std::string& path) {
  static std::atomic<int> number{0};
  return concat(path, kTemporaryMark, ::getpid(), "-", number++);
}

/// Locks the file or folder `name` that this process has just made. False if another process saw it unlocked and
/// removed it in between.
bool lock_new(const Fd& made, const std::string& name) {
  (void)::flock(made.get(), LOCK_EX | LOCK_NB);
  struct stat mine, there;
  return ::fstat(made.get(), &mine) != 0 || (::stat(name.c_str(), &there) == 0 && mine.st_ino == there.st_ino);
}

}  // namespace

TemporaryFolder::TemporaryFolder(const std::string& path) {
  remove_left_over(path);
  for (;;) {
    name = temporary_name(path);
    const bool made = ::mkdir(name.c_str(), 0777) == 0;
    MMFREE_CHECK(CreateError, made || errno == EEXIST, path, ": cannot create: ", error_text(errno));
    if (!made) continue;
    lock = Fd(restarted([&] { return ::open(name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
    if (lock_new(lock, name)) return;
  }
}

DurableFile::DurableFile(std::string path) : path_(std::move(path)) {
  std::error_code ignored;
  const fs::file_type type = fs::status(path_, ignored).type();
  MMFREE_CHECK(CreateError,
               type == fs::file_type::regular || type == fs::file_type::not_found || type == fs::file_type::none, path_,
               ": exists and is not a regular file; choose another name");
  remove_left_over(path_);
  do {
    // A killed process with the same id (usual in containers) may have left a file of this name.
    do {
      temporary_ = temporary_name(path_);
      file_ = Fd(restarted([&] { return ::open(temporary_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666); }));
    } while (!file_.is_open() && errno == EEXIST);
    MMFREE_CHECK(CreateError, file_.is_open(), path_, ": cannot create: ", error_text(errno));
  } while (!lock_new(file_, temporary_));
  take_attributes(temporary_, path_);  // from the start on: nobody else may read what is written
}

DurableFile::~DurableFile() {
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void DurableFile::write(const void* data, size_t size) {
  MMFREE_CHECK(IoError, file_.write({static_cast<const char*>(data), size}), path_,
               ": write failed: ", error_text(errno));
}

void DurableFile::commit() {
  // A failed fsync may have dropped the dirty pages, so a second one that succeeds proves nothing: never retry.
  take_attributes(temporary_, path_);  // they may have changed since
  MMFREE_CHECK(IoError, sync(file_), path_, ": fsync failed: ", error_text(errno));
  const Fd lock(::fcntl(file_.get(), F_DUPFD_CLOEXEC, 0));  // keeps the lock until the rename is done
  MMFREE_CHECK(IoError, file_.close(), path_, ": close failed: ", error_text(errno));
  MMFREE_CHECK(IoError, ::rename(temporary_.c_str(), path_.c_str()) == 0, path_,
               ": cannot rename the finished file: ", error_text(errno));
  temporary_.clear();
  sync_directory(fs::path(path_).parent_path().string());
}

void write_file(const std::string& path, std::string_view bytes) {
  DurableFile file(path);
  file.write(bytes.data(), bytes.size());
  file.commit();
}

}  // namespace mmfree
