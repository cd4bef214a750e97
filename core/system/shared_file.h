#pragma once
#include <cstddef>
#include <string>

namespace mmfree {

/// Memory that several processes of this machine share, zero at first, under a name that only its maker's user can
/// open. Who made it takes the name away with its destructor; what is mapped stays.
class SharedFile {
 public:
  /// Makes one. @throws Error
  explicit SharedFile(size_t bytes);
  ~SharedFile();
  SharedFile(const SharedFile&) = delete;
  const std::string& name() const { return name_; }

 private:
  std::string name_;
};

/// Such memory, mapped.
class SharedPages {
 public:
  /// @throws Error if there is none of this name with so many bytes
  SharedPages(const std::string& name, size_t bytes);
  ~SharedPages();
  SharedPages(const SharedPages&) = delete;
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void* data_;
  size_t bytes_;
};

}  // namespace mmfree
