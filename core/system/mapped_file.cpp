#include "core/system/mapped_file.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "core/error.h"

namespace mmfree {

MappedFile::MappedFile(const Fd& file, const std::string& path, int64_t bytes) : data_(nullptr), bytes_(bytes) {
  void* at = ::mmap(nullptr, size_t(bytes), PROT_READ, MAP_SHARED | MAP_POPULATE, file.get(), 0);
  MMFREE_CHECK(IoError, at != MAP_FAILED, path, ": cannot map ", bytes, " bytes: ", std::strerror(errno));
  data_ = static_cast<const char*>(at);
}

MappedFile::~MappedFile() { ::munmap(const_cast<char*>(data_), size_t(bytes_)); }

}  // namespace mmfree
