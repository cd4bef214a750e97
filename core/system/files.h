#pragma once
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace mmfree {

/// Makes a system call and repeats it while a signal interrupts it (EINTR). Not for close: that frees the descriptor
/// even if it is interrupted.
template <class Call>
auto restarted(Call&& call) {
  for (;;) {
    const auto result = call();
    if (result >= 0 || errno != EINTR) return result;
  }
}

/// Waits before a call that failed with `error` is made again: 10, 100, then 400 ms. Returns false, at once, if
/// `attempt` (from 0) is past these or if the error is none that may pass by itself. Keeps errno.
bool wait_to_retry(int error, int attempt);

/// Makes a system call that opens or reads, as `restarted`, and again after an error that may pass. Not for writes and
/// syncs: the kernel may have dropped what they failed to store.
template <class Call>
auto retried(Call&& call) {
  for (int attempt = 0;; ++attempt) {
    const auto result = restarted(call);
    if (result >= 0 || !wait_to_retry(errno, attempt)) return result;
  }
}

/// Owns one POSIX file descriptor.
class Fd {
 public:
  explicit Fd(int fd = -1) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept;
  ~Fd();
  int get() const { return fd_; }
  bool is_open() const { return fd_ >= 0; }
  /// Appends all of `bytes`. Returns false, with errno set, if the kernel reports an error.
  bool write(std::string_view bytes) const;
  /// Closes now. Returns false, with errno set, if the kernel reports an error.
  bool close();

 private:
  int fd_;
};

/// Whether an error is about the path (missing, no permission, name too long), not about a device that failed.
bool leads_nowhere(const std::error_code& error);

/// Opens a regular file for reading. Does not block on a pipe or device.
/// @throws MissingError if the path is missing or may not be read, IoError if it cannot be opened for another reason,
/// DataError if it is a directory, a pipe or a device.
Fd open_input(const std::string& path);
/// Size in bytes of an open file. @throws IoError
int64_t size_of_file(const Fd& file, const std::string& path);
/// Reads exactly `size` bytes at `offset`. @throws IoError, or DataError if the file is shorter.
void read_exactly(const Fd& file, const std::string& path, int64_t offset, void* to, int64_t size);
/// The whole of a regular file. @throws MissingError, IoError, or DataError if it is larger than `most` bytes.
std::string read_file(const std::string& path, int64_t most);

/// The names in a directory, sorted; empty if it does not exist. @throws IoError
std::vector<std::string> names_in(const std::string& directory);

/// Checks that the file system of the directory of `path` has `bytes` bytes free. Does not know quotas; passes if the
/// directory is missing. @throws IoError
void require_space(const std::string& path, int64_t bytes);

/// Makes the names in a directory durable (fsync); "" is the working directory. @throws IoError
void sync_directory(const std::string& path);

/// Creates a directory and its missing parents, and syncs their names to the disk. The destructor removes the
/// directories that it created and that are still empty.
class NeededDirectory {
 public:
  /// "" is the working directory. @throws CreateError, IoError
  explicit NeededDirectory(const std::string& path);
  ~NeededDirectory();
  NeededDirectory(const NeededDirectory&) = delete;
  /// Keeps the created directories, also empty ones.
  void keep() { made_.clear(); }

 private:
  explicit NeededDirectory(std::vector<std::string> made) : made_(std::move(made)) {}
  std::vector<std::string> made_;  ///< innermost first
};

/// Temporary files and folders are called `path` + kTemporaryMark + "<process id>-<number>".
inline constexpr std::string_view kTemporaryMark = ".mmfree-tmp-";
/// The `path` of such a name; empty for any other name.
std::string_view path_of_temporary(std::string_view name);

/// Gives a file or folder the mode, owner and group of the one at `old`, which it will replace. Where the system allows
/// no other owner it stays the writer's; another group than the old one may do what all may do. A file's set-user-id
/// and set-group-id are not kept. Does nothing unless `old` is a file or folder too.
void take_attributes(const std::string& path, const std::string& old);

/// A new folder beside `path`, to be renamed to `path` when it is complete. It is locked as long as `lock` lives.
/// Removes such folders of killed processes first. @throws CreateError
struct TemporaryFolder {
  explicit TemporaryFolder(const std::string& path);
  std::string name;
  Fd lock;
};

/// A file that gets its name only when it is complete: it is written under a temporary name beside `path`, synced and
/// renamed; then the directory is synced. It keeps mode, owner and group of an older file (take_attributes). The
/// temporary file of a killed process is removed by the next DurableFile of the same path.
class DurableFile {
 public:
  /// @throws CreateError, also if `path` is a device, a pipe or a directory
  explicit DurableFile(std::string path);
  /// Without `commit`: removes the temporary file; an older file at `path` is unchanged.
  ~DurableFile();
  DurableFile(const DurableFile&) = delete;
  DurableFile& operator=(const DurableFile&) = delete;
  /// Open for reading and writing until `commit`.
  const Fd& fd() const { return file_; }
  const std::string& temporary_path() const { return temporary_; }
  /// Appends. @throws IoError
  void write(const void* data, size_t size);
  /// Gives the file its name. @throws IoError: before the rename, and then an older file is unchanged; or at the sync
  /// of the directory, and then the new file is in place.
  void commit();

 private:
  std::string path_, temporary_;
  Fd file_;
};

/// Writes `bytes` as a DurableFile. @throws CreateError, IoError
void write_file(const std::string& path, std::string_view bytes);

}  // namespace mmfree
