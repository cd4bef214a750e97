#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

namespace mmfree {

/// Owns one POSIX file descriptor.
class Fd {
 public:
  explicit Fd(int fd = -1) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept;
  ~Fd();
  int get() const { return fd_; }
  bool is_open() const { return fd_ >= 0; }
  /// Closes now. Returns false, with errno set, if the kernel reports an error.
  bool close();

 private:
  int fd_;
};

/// Opens a regular file for reading; pipes and devices are refused without waiting for them.
/// @throws MissingError if it cannot be opened, DataError if it is not a regular file.
Fd open_input(const std::string& path);
/// Size in bytes of an open file. @throws IoError
int64_t size_of_file(const Fd& file, const std::string& path);
/// Reads exactly `size` bytes at `offset`. @throws IoError, or DataError if the file ends before.
void read_exactly(const Fd& file, const std::string& path, int64_t offset, void* to, int64_t size);
/// The whole file. @throws MissingError, IoError, or DataError if it is larger than `most` bytes.
std::string read_text(const std::string& path, int64_t most);

/// Makes the names in a directory durable (fsync). @throws IoError
void sync_directory(const std::string& path);

/// A file that gets its name only when it is complete: written as `path.tmp`, synced, renamed, directory synced.
class DurableFile {
 public:
  /// @throws CreateError
  explicit DurableFile(std::string path);
  /// Without `commit`: removes the temporary file; a file that was at `path` stays as it was.
  ~DurableFile();
  DurableFile(const DurableFile&) = delete;
  DurableFile& operator=(const DurableFile&) = delete;
  /// Appends. @throws IoError
  void write(const void* data, size_t size);
  /// @throws IoError; up to the rename the old file is untouched.
  void commit();

 private:
  std::string path_, temporary_;
  Fd file_;
};

/// Writes `text` as a DurableFile. @throws CreateError, IoError
void write_text(const std::string& path, const std::string& text);

}  // namespace mmfree
