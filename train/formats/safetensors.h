#pragma once
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/system/files.h"
#include "core/system/mapped_file.h"
#include "core/tensor.h"

namespace mmfree {

/// IEEE binary16. Conversion from float rounds to nearest even, overflow gives infinity, NaN stays NaN;
/// conversion to float is exact.
struct f16 {
  uint16_t bits = 0;
  f16() = default;
  explicit f16(float x);
  operator float() const;
};

/// One tensor in a safetensors file.
struct SafetensorsEntry {
  std::string name;
  std::string dtype;           ///< F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL
  std::vector<int64_t> shape;  ///< up to 8 extents
  int64_t begin = 0, end = 0;  ///< bytes, from the start of the data
};

/// Reads a safetensors file: u64 length N, N bytes of JSON header, then the tensors' little-endian bytes.
/// The constructor checks all of the format: header at most 100 MB and inside the file, starting with '{', at most 16
/// levels of JSON, no duplicate names, known dtypes, sizes equal to shape x dtype, data that cover the rest of the
/// file without gap or overlap. Data are read on demand, so the file must stay as it is.
/// Format: https://github.com/huggingface/safetensors
class SafetensorsReader {
 public:
  /// @throws MissingError, IoError, DataError naming the file and the tensor.
  explicit SafetensorsReader(const std::string& path);

  const std::string& path() const { return path_; }
  /// Names in the order of their data.
  std::vector<std::string> names() const;
  bool has(const std::string& name) const { return index_.count(name) > 0; }
  /// @throws DataError if there is no such tensor, or if it has more than 4 dimensions. The functions below throw it
  /// too if there is no such tensor.
  Shape shape(const std::string& name) const;
  const std::string& dtype_name(const std::string& name) const { return entry(name).dtype; }
  /// The pairs of text in `__metadata__`.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  /// The tensor as `as`: any float dtype as f64, f32 or bf16, any integer dtype (and BOOL) as i64, i32, i8 or u8.
  /// Narrowing floats rounds to nearest even (f64 to bf16 by way of f32).
  /// @throws DataError for float as integer and the reverse, or if a finite value does not fit; IoError
  Tensor read(const std::string& name, DType as) const;
  /// As read(); but if the tensor is stored as `as`, at an address that is a multiple of an element's size, it stays
  /// where it lies in the mapped file. The first call maps the file, which must then stay as it is as long as a tensor
  /// is used (see MappedFile).
  Tensor map(const std::string& name, DType as) const;
  /// The tensor's bytes as they are in the file.
  std::vector<char> bytes(const std::string& name) const;

 private:
  const SafetensorsEntry& entry(const std::string& name) const;
  void parse_header(const std::string& header, int64_t data_size);

  std::string path_;
  Fd file_;
  mutable std::shared_ptr<const MappedFile> mapped_;
  int64_t data_begin_ = 0, size_ = 0;
  std::vector<SafetensorsEntry> entries_;  // by offset
  std::map<std::string, size_t> index_;    // name -> place in entries_
  std::map<std::string, std::string> metadata_;
};

/// Writes a safetensors file with memory independent of its size. The header comes first in the file, so all tensors
/// are declared before the first is written, in the same order. The same calls give the same bytes. The data start at a
/// multiple of 8. The file gets its name at `commit` (see DurableFile); without it no file remains.
class SafetensorsWriter {
 public:
  /// @throws CreateError
  explicit SafetensorsWriter(const std::string& path, std::map<std::string, std::string> metadata = {{"format", "pt"}});
  /// `dtype` is one of SafetensorsEntry::dtype. @throws DataError for an unknown dtype, a name twice or not UTF-8.
  void declare(const std::string& name, const std::string& dtype, const Shape& shape);
  /// Writes the next declared tensor, converted to its declared dtype under the rules of SafetensorsReader::read.
  /// @throws ShapeError, DTypeError for float as integer and the reverse, DataError, IoError
  void write(const std::string& name, const Tensor& tensor);
  /// Path of the file before commit(). It can be read there once the last tensor is written.
  const std::string& temporary_path() const { return file_.temporary_path(); }
  /// Makes the file complete and durable. @throws IoError
  void commit();

 private:
  void write_header();

  std::string path_;
  std::map<std::string, std::string> metadata_;
  std::vector<SafetensorsEntry> entries_;
  std::set<std::string> names_;
  size_t next_ = 0;  // first entry that is not written
  bool header_written_ = false;
  DurableFile file_;
};

}  // namespace mmfree
