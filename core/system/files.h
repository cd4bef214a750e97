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

/// Makes a system call, again if a signal interrupts it. Not for close, which frees the descriptor in any case.
template <class Call>
auto restarted(Call&& call) {
  for (;;) {
    const auto result = call();
    if (result >= 0 || errno != EINTR) return result;
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

/// Whether an error says that a path leads to nothing that could be read, in difference to a device that fails.
bool leads_nowhere(const std::error_code& error);

/// Opens a regular file for reading; pipes and devices are refused without waiting for them.
/// @throws MissingError if there is none that may be read, IoError if it cannot be opened, DataError if it is a
/// directory, a pipe or a device.
Fd open_input(const std::string& path);
/// Size in bytes of an open file. @throws IoError
int64_t size_of_file(const Fd& file, const std::string& path);
/// Reads exactly `size` bytes at `offset`. @throws IoError, or DataError if the file ends before.
void read_exactly(const Fd& file, const std::string& path, int64_t offset, void* to, int64_t size);
/// The whole of a regular file. @throws MissingError, IoError, or DataError if it is larger than `most` bytes.
std::string read_file(const std::string& path, int64_t most);

/// The names in a directory, sorted; none if nothing has its name. @throws IoError
std::vector<std::string> names_in(const std::string& directory);

/// @throws IoError unless the file system of the directory of `path` has `bytes` bytes free. A quota is not seen, nor
/// that there is no such directory.
void require_space(const std::string& path, int64_t bytes);

/// Makes the names in a directory durable (fsync); "" is the working directory. @throws IoError
void sync_directory(const std::string& path);

/// Keeps a directory to this process as long as the result lives; on a file system without locks it does nothing.
/// @throws CreateError if another process has it
Fd lock_directory(const std::string& path);

/// A directory that is needed, made with those above it that are missing; what was made and still holds nothing when
/// this object goes is removed again. The names are durable.
class NeededDirectory {
 public:
  /// "" is the working directory. @throws CreateError, IoError
  explicit NeededDirectory(const std::string& path);
  ~NeededDirectory();
  NeededDirectory(const NeededDirectory&) = delete;
  /// What was made stays, even if it holds nothing.
  void keep() { made_.clear(); }

 private:
  explicit NeededDirectory(std::vector<std::string> made) : made_(std::move(made)) {}
  std::vector<std::string> made_;  ///< innermost first
};

/// The names of temporary files and folders: `path` and this, then "<process>-<number>".
inline constexpr std::string_view kTemporaryMark = ".mmfree-tmp-";

/// A folder to work in beside `path`, which may then take its name: new, and locked as long as `lock` lives. What
/// killed processes left of such folders is removed. @throws CreateError
struct TemporaryFolder {
  explicit TemporaryFolder(const std::string& path);
  std::string name;
  Fd lock;
};

/// A file that gets its name only when it is complete: written under a temporary name beside `path`, synced, renamed,
/// directory synced. What a process killed meanwhile leaves behind is removed by the next that writes the same file.
class DurableFile {
 public:
  /// @throws CreateError, also if `path` is a device, a pipe or a directory
  explicit DurableFile(std::string path);
  /// Without `commit`: removes the temporary file; a file that was at `path` stays as it was.
  ~DurableFile();
  DurableFile(const DurableFile&) = delete;
  DurableFile& operator=(const DurableFile&) = delete;
  /// Open for reading and writing until `commit`.
  const Fd& fd() const { return file_; }
  const std::string& temporary_path() const { return temporary_; }
  /// Appends. @throws IoError
  void write(const void* data, size_t size);
  /// @throws IoError; up to the rename the old file is untouched. If only the directory's sync fails, the new file is
  /// already in place.
  void commit();

 private:
  std::string path_, temporary_;
  Fd file_;
};

/// Writes `bytes` as a DurableFile. @throws CreateError, IoError
void write_file(const std::string& path, std::string_view bytes);

}  // namespace mmfree
