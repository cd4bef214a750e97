#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "core/system/files.h"

namespace mmfree {

/// An open file as read-only memory: processes that map the same file share its pages. The file must stay as it is as
/// long as the mapping lives; to touch what was cut off ends the process (SIGBUS). A file that is replaced by a rename,
/// as DurableFile does, stays as it is.
class MappedFile {
 public:
  /// Maps the first `bytes` bytes (> 0) and has the kernel read them. @throws IoError
  MappedFile(const Fd& file, const std::string& path, int64_t bytes);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  const char* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  const char* data_;
  int64_t bytes_;
};

}  // namespace mmfree
