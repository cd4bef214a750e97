#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/shape.h"
#include "core/system/files.h"
#include "core/tensor.h"
#include "train/formats/gguf_types.h"

/// GGUF files, version 3: "GGUF", u32 version, u64 number of tensors, u64 number of keys; each key: string, u32 type,
/// value; each tensor: string, u32 rank, u64 extents (the innermost first), u32 ggml type, u64 offset of its data. The
/// data start at the next multiple of the alignment (32, or general.alignment), and so does each tensor. A string is a
/// u64 length and bytes; an array a u32 type, a u64 count and values. All numbers are little-endian.
/// Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, src/gguf.cpp at d99724f2b141.
namespace mmfree {

/// GGUF's numbers.
enum class GgufType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, text, array, u64, i64, f64 };

/// "u8", …, "string", "array".
const char* name_of(GgufType t);

/// The value of a key.
struct GgufValue {
  GgufType type = GgufType::u32;
  GgufType element = GgufType::u32;  ///< of an array; arrays of arrays are not read
  uint64_t count = 1;                ///< values: 1, or those of the array
  std::string bytes;                 ///< of numbers, as stored
  std::vector<std::string> texts;    ///< of strings

  static GgufValue u32(uint32_t v);
  static GgufValue f32(float v);
  static GgufValue boolean(bool v);
  static GgufValue text(std::string v);
  static GgufValue array(const std::vector<float>& v);
  static GgufValue array(const std::vector<int32_t>& v);
  static GgufValue array(std::vector<std::string> v);

  /// One line for people; an array by type and count.
  std::string shown() const;
  /// The value as it stands in the file, its type before it.
  std::string serialized() const;
};

/// The keys of a file, in its order.
using GgufKeys = std::vector<std::pair<std::string, GgufValue>>;

/// One tensor. `shape` is ours: rows first. `offset` and `bytes` are those of its data, from the start of all data.
struct GgufTensor {
  std::string name;
  GgmlType type;
  Shape shape;
  int64_t offset = 0, bytes = 0;
};

/// Writes a GGUF file with memory independent of its size. All tensors are declared before the first is written, in
/// the same order. The same calls give the same bytes. The file gets its name at `commit` (see DurableFile).
class GgufWriter {
 public:
  /// @throws CreateError
  GgufWriter(const std::string& path, GgufKeys keys);
  /// @throws DataError for a name twice, of more than 63 bytes, or if a row does not divide by the type's groups
  void declare(const std::string& name, GgmlType type, const Shape& shape);
  /// Writes the next declared tensor, packed as ggml_pack does. @throws Error for another tensor, ShapeError, IoError
  void write(const std::string& name, const std::vector<uint8_t>& packed);
  /// Path of the file before commit(). It can be read there once the last tensor is written.
  const std::string& temporary_path() const { return file_.temporary_path(); }
  /// Makes the file complete and durable. @throws IoError
  void commit();

 private:
  void write_header();

  std::string path_;
  GgufKeys keys_;
  std::vector<GgufTensor> tensors_;
  std::set<std::string> names_;
  size_t next_ = 0;  // first tensor that is not written
  bool header_written_ = false;
  DurableFile file_;
};

/// Reads a GGUF file. The constructor checks all of its structure: version 3, known types, no key or name twice, names
/// of at most 63 bytes, rows that divide by their groups, data without gap or overlap inside the file. Data are read on
/// demand, so the file must stay as it is.
class GgufReader {
 public:
  /// @throws MissingError, IoError, VersionError, DataError naming the file and the key or tensor
  explicit GgufReader(const std::string& path);

  const std::string& path() const { return path_; }
  int64_t size() const { return size_; }
  /// Where the data start.
  int64_t data_begin() const { return data_begin_; }
  const GgufKeys& keys() const { return keys_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  /// The value of a key, or null.
  const GgufValue* find(const std::string& key) const;
  /// A text. @throws DataError if there is no such key or it is no string
  const std::string& text(const std::string& key) const;
  bool has(const std::string& name) const { return index_.count(name) > 0; }
  /// @throws DataError if there is no such tensor
  const GgufTensor& tensor(const std::string& name) const;
  /// The tensor's packed bytes. @throws DataError, IoError
  std::vector<uint8_t> bytes(const std::string& name) const;
  /// Its values, f32. @throws DataError, also for a value that is not finite, IoError
  Tensor read(const std::string& name) const;

 private:
  class Cursor;
  void read_keys(Cursor& in, uint64_t count);
  void read_tensors(Cursor& in, uint64_t count);

  std::string path_;
  Fd file_;
  int64_t size_ = 0, data_begin_ = 0, alignment_ = 32;
  GgufKeys keys_;
  std::map<std::string, size_t> key_index_, index_;
  std::vector<GgufTensor> tensors_;
};

/// Packs a tensor of f32. @throws DataError naming `where` if a value is not finite or a scale does not fit the type
std::vector<uint8_t> packed(const std::string& where, GgmlType type, const Tensor& values);

/// 16 hex digits of XXH3-64 over keys and tensors of such a file, without the key kGgufHash. `bytes_of` gives the
/// packed bytes of tensor i.
std::string gguf_hash(const GgufKeys& keys, const std::vector<GgufTensor>& tensors,
                      const std::function<std::vector<uint8_t>(size_t)>& bytes_of);
inline constexpr const char* kGgufHash = "mmfree.content_hash";

/// Compares a file with the hash that mmfree wrote into it. @throws DataError without a hash, DamagedError, IoError
void verify_gguf(const std::string& path);

}  // namespace mmfree
