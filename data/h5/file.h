#pragma once
#include <hdf5.h>

#include <array>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/dtype.h"
#include "core/system/hash.h"
#include "data/h5/session.h"

/// What Writer and Reader share: the user block and a file driver that keeps I/O errors away from HDF5. Private to h5.
namespace mmfree::h5 {

constexpr int64_t kUserBlockBytes = 4096;
constexpr int64_t kChunkBytes = 1 << 20;

/// The dataset i64 [chunks] with the XXH3-64 of each chunk of each series, and the attribute with the XXH3-64 of these.
/// Also the kind of the file beside a shard that has none.
constexpr const char* kSums = "sums";
constexpr const char* kSumsSuffix = ".sums";
int64_t sum_of_sums(std::span<const int64_t> sums);

struct File;

/// XXH3-128 of a file's bytes from kUserBlockBytes on, whose parts may come from reads made for another purpose. In the
/// order of the file each byte is read once.
class ContentHash {
 public:
  /// Reads and hashes what is left up to `offset`. Allocates nothing. An error stays in `file`.
  void read_up_to(File& file, int64_t offset);
  /// Hashes n bytes that were read at `offset`, unless that is not where the hashed part ends.
  void add(int64_t offset, const void* bytes, int64_t n);
  std::array<uint64_t, 2> digest() const { return hash_.digest(); }

 private:
  Hash128 hash_;
  int64_t at_ = kUserBlockBytes;  // end of what is hashed
  std::vector<char> buffer_ = std::vector<char>(kChunkBytes);
};

/// An open file and the first system call on it that failed. HDF5 1.10 may crash when its own I/O fails, so the driver
/// records the failure here and reports success to HDF5. The caller of HDF5 then calls check().
struct File {
  int fd = -1;                         ///< open for as long as the File is used; owned by the Reader or Writer
  std::string path;                    ///< the name to show in errors
  int64_t end = 0;                     ///< size of the file in bytes as HDF5 sees it
  int error = 0;                       ///< errno of the first failure, 0 if none
  const char* call = "";               ///< that call's name
  std::optional<ContentHash> content;  ///< if set, datasets are hashed as HDF5 reads them

  File() = default;
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  /// Records errno. Nothing is read or written after the first failure.
  void fail(const char* what);
  /// @throws IoError if a call has failed
  void check() const;
  void write_at(int64_t offset, const void* bytes, int64_t n);
  /// Bytes beyond the end of the file read as zeros.
  void read_at(int64_t offset, void* bytes, int64_t n);
};

/// Closes an HDF5 identifier, in a Session of its own, when it goes out of scope.
class Id {
 public:
  using Close = herr_t (*)(hid_t);
  Id() = default;
  Id(hid_t id, Close close) : id_(id), close_(close) {}
  Id(Id&& o) noexcept : id_(std::exchange(o.id_, -1)), close_(o.close_) {}
  Id& operator=(Id&& o) noexcept {
    std::swap(id_, o.id_);
    std::swap(close_, o.close_);
    return *this;
  }
  ~Id() { reset(); }
  operator hid_t() const { return id_; }
  herr_t reset() {
    if (id_ < 0) return 0;
    const Session session;
    return close_(std::exchange(id_, -1));
  }

 private:
  hid_t id_ = -1;
  Close close_ = nullptr;
};

/// A file access property list: our driver on `file`, latest format.
Id access_list(File* file);
/// The in-memory HDF5 type of `type` (u16 for bf16).
hid_t memory_type(DType type);

struct UserBlock {
  std::string kind;
  int64_t file_bytes = 0;
  std::array<uint64_t, 2> hash{};  ///< XXH3-128, low half first
  std::string hash_hex() const;
};
void write_user_block(File& file, const UserBlock& block);
/// @throws DamagedError if the block is damaged or not ours, VersionError, IoError
UserBlock read_user_block(File& file);

}  // namespace mmfree::h5
