#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/shape.h"
#include "core/tensor.h"

/// The one file form of checkpoints and token shards: an HDF5 file (readable with h5py) whose 4 KiB user block carries
///   bytes 0..7      magic "MMFREEH5"
///   bytes 8..11     format version (u32, little-endian, as all numbers here)
///   bytes 16..31    kind, zero padded: "checkpoint", "tokens" or "sums"
///   bytes 32..39    size of the whole file in bytes (u64)
///   bytes 40..55    XXH3-128 of all bytes after the user block (low 64 bits, then high)
///   bytes 4088..    XXH3-64 of the user block's bytes before this field; all bytes not named are zero.
/// With them one flipped or missing byte anywhere is found. A file whose hash is not compared before it is read is
/// protected in parts: HDF5's metadata carry checksums of their own, which HDF5 verifies, and so do chunks
/// (fletcher32), but a chunk that became zeros satisfies its own. Therefore a file with series has
///   dataset sums    i64 [chunks]: XXH3-64 of each chunk of each series, the series in the order of their names
///   attribute sums  i64: XXH3-64 of that dataset's bytes.
/// The hash of a chunk is over its values as they are stored (little-endian), those that exist in the last chunk. For
/// shards without sums, which an older mmfree wrote, add_sums writes a file PATH.sums of kind "sums" with the same
/// dataset and attribute, and an attribute `shard`: the content hash of the shard.
namespace mmfree::h5 {

/// Integer types a series may have in the file; those that DType lacks exist on disk only.
enum class SeriesType : uint8_t { u8, u16, u32, i64 };

/// Writes one file atomically, as a DurableFile: it gets its name at commit(). Memory use does not grow with the size
/// of the data. The bytes written depend on the calls alone (no times).
/// @throws CreateError if the temporary file cannot be created, or a file of another kind has the name; IoError, naming
/// the file and the failed call, if anything cannot be written. The destructor then removes the temporary file, and an
/// older file at `path` is untouched.
class Writer {
 public:
  Writer(const std::string& path, const std::string& kind);
  /// Removes the temporary file unless commit() succeeded.
  ~Writer();
  Writer(Writer&&) noexcept;
  Writer& operator=(Writer&&) = delete;

  /// Writes a whole dataset, row-major; "a/b" puts b into group a. bf16 is stored as u16 with attribute dtype="bf16".
  void write(const std::string& name, DType dtype, const Shape& shape, const void* values);
  /// The same from a tensor on any device, about 1 MiB of rows at a time. `check` sees each part, on the CPU, before it
  /// is written.
  void write(const std::string& name, const Tensor& values, const std::function<void(const Tensor&)>& check = nullptr);

  /// Declares an empty 1-D dataset that append() grows. `compressed`: by HDF5's own filters, shuffle and deflate.
  void create_series(const std::string& name, SeriesType type, bool compressed = false);
  /// Appends n values. @throws Error if a value does not fit the series' type.
  void append(const std::string& name, const uint8_t* values, int64_t n);
  void append(const std::string& name, const int32_t* values, int64_t n);
  void append(const std::string& name, const int64_t* values, int64_t n);

  /// Attributes of the file's root group.
  void attribute(const std::string& name, const std::string& value);
  void attribute(const std::string& name, const char* value) { attribute(name, std::string(value)); }
  void attribute(const std::string& name, int64_t value);

  /// Completes the file: flush, hash, user block, fsync, rename over `path`, fsync of the directory. If only the last
  /// step fails, IoError is thrown although the new file is already in place. Nothing may be called afterwards.
  void commit();
  /// XXH3-128 of the file's content as 32 hex digits; known after commit().
  const std::string& hash() const;

 private:
  friend std::string add_sums(const std::string& path);
  void write_sums(const std::vector<int64_t>& sums);

  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// For a shard that an older mmfree wrote without sums: verifies all of it and writes PATH.sums, which Reader takes
/// them from. Returns the error that kept it from being written, empty if none. @throws as Reader
std::string add_sums(const std::string& path);

/// The kind that the user block of an mmfree file names; empty for any other file. @throws MissingError, DataError if
/// it is a folder or a device, VersionError, IoError
std::string kind_of(const std::string& path);

/// How much of a file Reader verifies, and when.
enum class Verify : uint8_t {
  header,         ///< size, user block and structure: a few KiB, whatever the size of the file
  while_reading,  ///< the same, and what read() reads is hashed on its way, for verify_content() at the end
  everything,     ///< also the hash of the content, so it reads the whole file
};

/// Reads a file written by Writer. The constructor checks size, user block and, with Verify::everything, the hash
/// before HDF5 opens the file, and each object's header before HDF5 follows it. It refuses what Writer never makes:
/// links other than hard ones, external or virtual storage, filters other than fletcher32 and a series' shuffle and
/// deflate, types other than Writer's, and rank above 4. A read refuses chunks that are absent, stored at another size,
/// or do not match their checksum, and chunks of a series that do not match their sum. Memory is bounded by the size of
/// the file.
/// @throws MissingError if the file cannot be opened, DamagedError, DataError if it is of another kind, VersionError,
/// IoError if reading fails. Not for concurrent use.
class Reader {
 public:
  Reader(const std::string& path, const std::string& expected_kind, Verify verify = Verify::everything);
  ~Reader();
  Reader(Reader&&) noexcept;
  Reader& operator=(Reader&&) = delete;

  /// Of a file opened with Verify::while_reading: reads what read() has not passed and compares the content with its
  /// hash. If the datasets were read in the order in which they were written, the file's bytes are read once. What was
  /// read counts only once this has returned. Nothing is left to do if the content is verified, or with Verify::header.
  /// @throws DamagedError, IoError
  void verify_content() const;

  const std::string& path() const;
  /// The XXH3-128 in the user block as 32 hex digits.
  const std::string& hash() const;

  /// Whether each chunk of a series is compared with a sum when it is read.
  bool has_sums() const;
  /// The XXH3-64 of each chunk of each series as it is read, the series in the order of their names.
  std::vector<int64_t> compute_sums() const;

  bool has(const std::string& name) const;
  /// Full names of all datasets that start with `prefix`, sorted.
  std::vector<std::string> names(const std::string& prefix = "") const;
  /// These and the read functions throw DataError for a name that the file lacks.
  Shape shape(const std::string& name) const;
  /// The stored type; for u16 and u32, which DType lacks, the type that holds all their values: i32 and i64.
  DType dtype(const std::string& name) const;

  /// Reads rows [begin_row, begin_row + rows) of dimension 0 into `out` as `type` (a rank-0 dataset is one row).
  /// Integers convert to integers (values out of range are clipped), floats to floats, bf16 to bf16 only.
  /// @throws DataError for other pairs, ShapeError for rows outside the dataset.
  void read(const std::string& name, int64_t begin_row, int64_t rows, DType type, void* out) const;
  /// The whole dataset as a CPU tensor of dtype `type`.
  Tensor read_tensor(const std::string& name, DType type) const;

  bool has_attribute(const std::string& name) const;
  /// @throws DataError if the attribute is absent or of another type.
  std::string attribute_string(const std::string& name) const;
  int64_t attribute_int(const std::string& name) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mmfree::h5
