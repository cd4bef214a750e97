#include "data/h5/file.h"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <new>

#include "core/error.h"
#include "core/system/files.h"

namespace mmfree::h5 {

int64_t sum_of_sums(std::span<const int64_t> sums) {
  static_assert(std::endian::native == std::endian::little, "sums are hashed in host order");
  return int64_t(hash64({reinterpret_cast<const char*>(sums.data()), sums.size_bytes()}));
}

void File::fail(const char* what) {
  error = errno ? errno : EIO;
  call = what;
}

void File::check() const { MMFREE_CHECK(IoError, !error, path, ": ", call, " failed: ", error_text(error)); }

void File::write_at(int64_t offset, const void* bytes, int64_t n) {
  end = std::max(end, offset + n);
  const char* p = static_cast<const char*>(bytes);
  while (n > 0 && !error) {
    const ssize_t done = restarted([&] { return ::pwrite(fd, p, size_t(n), offset); });
    if (done <= 0) {
      if (done == 0) errno = EIO;
      return fail("write");
    }
    p += done, offset += done, n -= done;
  }
}

void File::read_at(int64_t offset, void* bytes, int64_t n) {
  char* p = static_cast<char*>(bytes);
  while (n > 0 && !error) {
    const ssize_t done = retried([&] { return ::pread(fd, p, size_t(n), offset); });
    if (done == 0 && offset < end) {
      errno = EIO;
      fail("read of a file that has become shorter");
    }
    if (done < 0) fail("read");
    if (done <= 0) break;
    p += done, offset += done, n -= done;
  }
  std::memset(p, 0, size_t(n));
}

void ContentHash::read_up_to(File& file, int64_t offset) {
  while (at_ < offset && !file.error) {
    const int64_t n = std::min<int64_t>(kChunkBytes, offset - at_);
    file.read_at(at_, buffer_.data(), n);
    add(at_, buffer_.data(), n);
  }
}

void ContentHash::add(int64_t offset, const void* bytes, int64_t n) {
  if (offset != at_) return;
  hash_.update(bytes, size_t(n));
  at_ += n;
}

namespace {

struct DriverFile {
  H5FD_t base;  // HDF5 casts between H5FD_t* and this struct, so it comes first
  File* file;
  haddr_t end_of_allocation;
};

File& file_of(const H5FD_t* f) { return *reinterpret_cast<const DriverFile*>(f)->file; }

H5FD_t* driver_open(const char*, unsigned, hid_t access, haddr_t) {
  const auto* file = static_cast<File* const*>(H5Pget_driver_info(access));
  if (!file) return nullptr;
  auto* opened = new (std::nothrow) DriverFile{};  // no exception may pass through HDF5
  if (!opened) {
    errno = ENOMEM;
    (*file)->fail("opening");
    return nullptr;
  }
  opened->file = *file;
  return &opened->base;
}

herr_t driver_close(H5FD_t* f) {
  delete reinterpret_cast<DriverFile*>(f);
  return 0;
}

herr_t driver_query(const H5FD_t*, unsigned long* flags) {
  *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_AGGREGATE_SMALLDATA;
  return 0;
}

haddr_t driver_get_eoa(const H5FD_t* f, H5FD_mem_t) {
  return reinterpret_cast<const DriverFile*>(f)->end_of_allocation;
}

herr_t driver_set_eoa(H5FD_t* f, H5FD_mem_t, haddr_t end) {
  reinterpret_cast<DriverFile*>(f)->end_of_allocation = end;
  return 0;
}

haddr_t driver_get_eof(const H5FD_t* f, H5FD_mem_t) { return haddr_t(file_of(f).end); }

bool in_range(haddr_t address, size_t size) {
  constexpr auto limit = haddr_t(std::numeric_limits<int64_t>::max());
  return address <= limit && size <= limit - address;
}

/// Metadata lies all over the file and is read when the file is opened: only data is hashed on its way.
herr_t driver_read(H5FD_t* f, H5FD_mem_t type, hid_t, haddr_t address, size_t size, void* buffer) {
  if (!in_range(address, size)) return -1;
  File& file = file_of(f);
  ContentHash* hash = type == H5FD_MEM_DRAW && file.content ? &*file.content : nullptr;
  const auto offset = int64_t(address);
  if (hash) hash->read_up_to(file, std::min(offset, file.end));
  file.read_at(offset, buffer, int64_t(size));
  if (hash) hash->add(offset, buffer, std::min(int64_t(size), file.end - offset));
  return 0;
}

herr_t driver_write(H5FD_t* f, H5FD_mem_t, hid_t, haddr_t address, size_t size, const void* buffer) {
  if (!in_range(address, size)) return -1;
  file_of(f).write_at(int64_t(address), buffer, int64_t(size));
  return 0;
}

herr_t driver_truncate(H5FD_t* f, hid_t, hbool_t) {
  File& file = file_of(f);
  const auto size = int64_t(driver_get_eoa(f, H5FD_MEM_DEFAULT));
  if (size == file.end || file.error) return 0;
  if (restarted([&] { return ::ftruncate(file.fd, size); }) != 0) file.fail("ftruncate");
  file.end = size;
  return 0;
}

hid_t driver_id() {
  static const hid_t id = [] {
    static H5FD_class_t driver{};
    driver.name = "mmfree";
    driver.maxaddr = haddr_t(std::numeric_limits<int64_t>::max());
    driver.fc_degree = H5F_CLOSE_STRONG;
    driver.fapl_size = sizeof(File*);
    driver.open = driver_open;
    driver.close = driver_close;
    driver.query = driver_query;
    driver.get_eoa = driver_get_eoa;
    driver.set_eoa = driver_set_eoa;
    driver.get_eof = driver_get_eof;
    driver.read = driver_read;
    driver.write = driver_write;
    driver.truncate = driver_truncate;
    const H5FD_mem_t one_list[] = H5FD_FLMAP_SINGLE;
    std::copy(std::begin(one_list), std::end(one_list), driver.fl_map);
    return H5FDregister(&driver);
  }();
  return id;
}

}  // namespace

Id access_list(File* file) {
  Id list(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  MMFREE_CHECK(Error, list >= 0 && H5Pset_driver(list, driver_id(), &file) >= 0,
               "hdf5: cannot register the file driver");
  H5Pset_libver_bounds(list, H5F_LIBVER_LATEST, H5F_LIBVER_LATEST);
  H5Pset_fclose_degree(list, H5F_CLOSE_STRONG);
  return list;
}

hid_t memory_type(DType type) {
  switch (type) {
    case DType::f64:
      return H5T_NATIVE_DOUBLE;
    case DType::f32:
      return H5T_NATIVE_FLOAT;
    case DType::bf16:
      return H5T_NATIVE_UINT16;
    case DType::i8:
      return H5T_NATIVE_INT8;
    case DType::u8:
      return H5T_NATIVE_UINT8;
    case DType::i32:
      return H5T_NATIVE_INT32;
    case DType::i64:
      return H5T_NATIVE_INT64;
  }
  throw DTypeError("hdf5: unknown dtype");
}

namespace {
constexpr char kMagic[8] = {'M', 'M', 'F', 'R', 'E', 'E', 'H', '5'};
constexpr uint32_t kVersion = 1;
constexpr int64_t kKindBytes = 16;
constexpr size_t kBlockHashAt = kUserBlockBytes - 8;
}  // namespace

std::string UserBlock::hash_hex() const { return hex16(hash[1]) + hex16(hash[0]); }

void write_user_block(File& file, const UserBlock& block) {
  static_assert(std::endian::native == std::endian::little, "the user block is written in host order");
  MMFREE_CHECK(Error, block.kind.size() < kKindBytes, "h5: kind '", block.kind, "' is too long");
  std::array<char, kUserBlockBytes> bytes{};
  std::memcpy(&bytes[0], kMagic, 8);
  std::memcpy(&bytes[8], &kVersion, 4);
  std::memcpy(&bytes[16], block.kind.data(), block.kind.size());
  std::memcpy(&bytes[32], &block.file_bytes, 8);
  std::memcpy(&bytes[40], block.hash.data(), 16);
  const uint64_t hash = hash64({bytes.data(), kBlockHashAt});
  std::memcpy(&bytes[kBlockHashAt], &hash, 8);
  file.write_at(0, bytes.data(), kUserBlockBytes);
}

UserBlock read_user_block(File& file) {
  std::array<char, kUserBlockBytes> bytes{};
  file.read_at(0, bytes.data(), kUserBlockBytes);
  file.check();
  MMFREE_CHECK(DamagedError, std::memcmp(&bytes[0], kMagic, 8) == 0, file.path,
               ": not an mmfree file (its first bytes are not 'MMFREEH5')");
  uint64_t hash = 0;
  std::memcpy(&hash, &bytes[kBlockHashAt], 8);
  MMFREE_CHECK(DamagedError, hash == hash64({bytes.data(), kBlockHashAt}), file.path,
               ": damaged header (hash mismatch in the first 4096 bytes); restore the file from a copy");
  uint32_t version = 0;
  std::memcpy(&version, &bytes[8], 4);
  MMFREE_CHECK(VersionError, version == kVersion, file.path, ": file format version ", version, ", this program reads ",
               kVersion, "; use a newer mmfree");
  UserBlock block;
  block.kind.assign(&bytes[16], strnlen(&bytes[16], kKindBytes));
  std::memcpy(&block.file_bytes, &bytes[32], 8);
  std::memcpy(block.hash.data(), &bytes[40], 16);
  return block;
}

}  // namespace mmfree::h5
