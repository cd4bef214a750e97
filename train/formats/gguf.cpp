#include "train/formats/gguf.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/system/hash.h"
#include "core/system/utf8.h"

namespace mmfree {
namespace {

constexpr const char* kMagic = "GGUF";
constexpr uint32_t kVersion = 3;
constexpr int64_t kAlignment = 32;
constexpr uint64_t kLongestName = 63, kLongestKey = 65535;
constexpr uint64_t kLeastTensor = 8 + 4 + 8 + 4 + 8, kLeastKey = 8 + 4 + 1;  // bytes in a file

constexpr const char* kTypeNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                      "bool", "string", "array", "u64", "i64", "f64"};
constexpr int kTypeBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

template <class T>
std::string raw(T value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof value);
}

std::string counted(const std::string& text) { return raw(uint64_t(text.size())) + text; }

int64_t aligned(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/// Bytes of a tensor; -1 if a row does not divide by the groups or the product overflows.
int64_t tensor_bytes(GgmlType type, const Shape& shape) {
  int64_t n = 1;
  for (int i = 0; i < shape.rank(); ++i)
    if (shape[i] < 1 || __builtin_mul_overflow(n, shape[i], &n)) return -1;
  const int64_t row = shape.rank() ? shape[-1] : 1;
  if (row % group_size(type) || __builtin_mul_overflow(n / group_size(type), group_bytes(type), &n)) return -1;
  return n;
}

template <class T>
GgufValue numbers(GgufType type, const std::vector<T>& v) {
  GgufValue value{GgufType::array, type, v.size(), {}, {}};
  value.bytes.assign(reinterpret_cast<const char*>(v.data()), v.size() * sizeof(T));
  return value;
}

template <class T>
std::string shown_number(const std::string& bytes) {
  T value;
  std::memcpy(&value, bytes.data(), sizeof value);
  if constexpr (sizeof(T) == 1)
    return std::to_string(int(value));
  else
    return concat(value);
}

}  // namespace

const char* name_of(GgufType t) { return kTypeNames[size_t(t)]; }

GgufValue GgufValue::u32(uint32_t v) { return {GgufType::u32, GgufType::u32, 1, raw(v), {}}; }
GgufValue GgufValue::f32(float v) { return {GgufType::f32, GgufType::u32, 1, raw(v), {}}; }
GgufValue GgufValue::boolean(bool v) { return {GgufType::boolean, GgufType::u32, 1, raw(uint8_t(v)), {}}; }
GgufValue GgufValue::text(std::string v) { return {GgufType::text, GgufType::u32, 1, {}, {std::move(v)}}; }
GgufValue GgufValue::array(const std::vector<float>& v) { return numbers(GgufType::f32, v); }
GgufValue GgufValue::array(const std::vector<int32_t>& v) { return numbers(GgufType::i32, v); }
GgufValue GgufValue::array(std::vector<std::string> v) {
  return {GgufType::array, GgufType::text, v.size(), {}, std::move(v)};
}

std::string GgufValue::shown() const {
  switch (type) {
    case GgufType::u8:
      return shown_number<uint8_t>(bytes);
    case GgufType::i8:
      return shown_number<int8_t>(bytes);
    case GgufType::u16:
      return shown_number<uint16_t>(bytes);
    case GgufType::i16:
      return shown_number<int16_t>(bytes);
    case GgufType::u32:
      return shown_number<uint32_t>(bytes);
    case GgufType::i32:
      return shown_number<int32_t>(bytes);
    case GgufType::u64:
      return shown_number<uint64_t>(bytes);
    case GgufType::i64:
      return shown_number<int64_t>(bytes);
    case GgufType::f32:
      return shown_number<float>(bytes);
    case GgufType::f64:
      return shown_number<double>(bytes);
    case GgufType::boolean:
      return bytes[0] ? "true" : "false";
    case GgufType::text:
      return quote(texts[0]);
    case GgufType::array:
      return concat(count, " of ", name_of(element));
  }
  return "?";
}

std::string GgufValue::serialized() const {
  std::string out = raw(uint32_t(type));
  if (type == GgufType::array) out += raw(uint32_t(element)) + raw(count);
  for (const std::string& t : texts) out += counted(t);
  return out + bytes;
}

GgufWriter::GgufWriter(const std::string& path, GgufKeys keys) : path_(path), keys_(std::move(keys)), file_(path) {}

void GgufWriter::declare(const std::string& name, GgmlType type, const Shape& shape) {
  const std::string where = concat(path_, ": tensor ", quote(name), ": ");
  MMFREE_CHECK(Error, !header_written_, where, "declared after the first write");
  MMFREE_CHECK(DataError, names_.insert(name).second, where, "name is taken");
  MMFREE_CHECK(DataError, name.size() <= kLongestName, where, "the name has ", name.size(), " bytes, at most ",
               kLongestName, " are allowed");
  const int64_t bytes = tensor_bytes(type, shape);
  MMFREE_CHECK(DataError, bytes > 0, where, shape, " cannot be stored as ", name_of(type), ", whose groups have ",
               group_size(type), " values");
  const int64_t offset = tensors_.empty() ? 0 : aligned(tensors_.back().offset + tensors_.back().bytes, kAlignment);
  tensors_.push_back({name, type, shape, offset, bytes});
}

void GgufWriter::write_header() {
  std::string header = kMagic + raw(kVersion) + raw(uint64_t(tensors_.size())) + raw(uint64_t(keys_.size()));
  for (const auto& [key, value] : keys_) header += counted(key) + value.serialized();
  for (const GgufTensor& t : tensors_) {
    header += counted(t.name) + raw(uint32_t(t.shape.rank()));
    for (int i = t.shape.rank() - 1; i >= 0; --i) header += raw(uint64_t(t.shape[i]));
    header += raw(uint32_t(t.type)) + raw(uint64_t(t.offset));
  }
  header.resize(size_t(aligned(int64_t(header.size()), kAlignment)), '\0');
  file_.write(header.data(), header.size());
  header_written_ = true;
}

void GgufWriter::write(const std::string& name, const std::vector<uint8_t>& packed) {
  MMFREE_CHECK(Error, next_ < tensors_.size() && tensors_[next_].name == name, path_, ": tensor ", quote(name),
               ": not the next declared one");
  const GgufTensor& t = tensors_[next_++];
  MMFREE_CHECK(ShapeError, int64_t(packed.size()) == t.bytes, path_, ": tensor ", quote(name), ": has ", packed.size(),
               " bytes, declared were ", t.bytes);
  if (!header_written_) write_header();
  file_.write(packed.data(), packed.size());
  const std::string padding(size_t(aligned(t.bytes, kAlignment) - t.bytes), '\0');
  file_.write(padding.data(), padding.size());
}

void GgufWriter::commit() {
  MMFREE_CHECK(Error, next_ == tensors_.size(), path_, ": ", tensors_.size() - next_, " declared tensors not written");
  if (!header_written_) write_header();
  file_.commit();
}

/// Reads a file from its beginning, in pieces.
class GgufReader::Cursor {
 public:
  Cursor(const Fd& file, const std::string& path, int64_t size) : file_(file), path_(path), size_(size) {}
  int64_t position() const { return at_; }
  uint64_t left() const { return uint64_t(size_ - at_); }

  void read(void* to, uint64_t n, const char* what) {
    MMFREE_CHECK(DataError, n <= left(), path_, ": ends in ", what, ", at byte ", size_, "; truncated?");
    char* out = static_cast<char*>(to);
    while (n) {
      if (at_ < begin_ || at_ >= begin_ + int64_t(buffer_.size())) fill();
      const uint64_t take = std::min(n, uint64_t(begin_ + int64_t(buffer_.size()) - at_));
      std::memcpy(out, buffer_.data() + (at_ - begin_), take);
      out += take, at_ += int64_t(take), n -= take;
    }
  }
  template <class T>
  T number(const char* what) {
    T value;
    read(&value, sizeof value, what);
    return value;
  }
  std::string text(uint64_t most, const char* what) {
    const uint64_t n = number<uint64_t>(what);
    MMFREE_CHECK(DataError, n <= std::min(most, left()), path_, ": ", what, " at byte ", at_ - 8, " claims ", n,
                 " bytes, at most ", std::min(most, left()), " are possible; the file is damaged or no GGUF file");
    std::string out(n, '\0');
    read(out.data(), n, what);
    return out;
  }

 private:
  void fill() {
    buffer_.resize(size_t(std::min<int64_t>(1 << 16, size_ - at_)));
    begin_ = at_;
    read_exactly(file_, path_, at_, buffer_.data(), int64_t(buffer_.size()));
  }
  const Fd& file_;
  const std::string& path_;
  int64_t size_, at_ = 0, begin_ = 0;
  std::vector<char> buffer_;
};

namespace {

/// A type of values. @throws DataError
GgufType checked_type(uint32_t type, bool in_array, const std::string& where) {
  MMFREE_CHECK(DataError, type <= uint32_t(GgufType::f64), where, "has values of type ", type, ", expected 0..12");
  MMFREE_CHECK(DataError, !in_array || GgufType(type) != GgufType::array, where,
               "is an array of arrays, which is not read");
  return GgufType(type);
}

}  // namespace

GgufReader::GgufReader(const std::string& path) : path_(path), file_(open_input(path)) {
  size_ = size_of_file(file_, path_);
  Cursor in(file_, path_, size_);
  char magic[4] = {};
  in.read(magic, std::min<uint64_t>(4, in.left()), "its beginning");
  MMFREE_CHECK(DataError, std::string_view(magic, 4) == kMagic, path_,
               ": is no GGUF file: it does not begin with GGUF");
  const uint32_t version = in.number<uint32_t>("its version");
  MMFREE_CHECK(VersionError, version == kVersion, path_, ": is GGUF of version ", version,
               "; this program reads version ", kVersion, ", little-endian");
  const uint64_t tensors = in.number<uint64_t>("the number of tensors");
  const uint64_t keys = in.number<uint64_t>("the number of keys");
  MMFREE_CHECK(DataError, tensors <= in.left() / kLeastTensor && keys <= in.left() / kLeastKey, path_, ": claims ",
               tensors, " tensors and ", keys, " keys, too many for its ", size_, " bytes; damaged?");
  read_keys(in, keys);
  read_tensors(in, tensors);
}

void GgufReader::read_keys(Cursor& in, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    const std::string key = in.text(kLongestKey, "a key");
    const std::string where = concat(path_, ": key ", quote(key), ": ");
    MMFREE_CHECK(DataError, find_invalid_utf8(key) == std::string::npos, where, "is not UTF-8");
    MMFREE_CHECK(DataError, key_index_.emplace(key, keys_.size()).second, where, "is there twice");
    GgufValue value;
    value.type = value.element = checked_type(in.number<uint32_t>("a type"), false, where);
    const bool array = value.type == GgufType::array;
    if (array) {
      value.element = checked_type(in.number<uint32_t>("a type"), true, where);
      value.count = in.number<uint64_t>("a count");
    }
    const bool text = value.element == GgufType::text;
    const uint64_t each = text ? 8 : uint64_t(kTypeBytes[size_t(value.element)]);
    MMFREE_CHECK(DataError, value.count <= in.left() / each, where, "claims ", value.count,
                 " values, more than the rest of the file holds; damaged?");
    if (text) value.texts.reserve(value.count);
    for (uint64_t k = 0; text && k < value.count; ++k) value.texts.push_back(in.text(in.left(), "a text"));
    if (!text) value.bytes.resize(value.count * each);
    in.read(value.bytes.data(), value.bytes.size(), "a value");
    for (const char c : value.element == GgufType::boolean ? value.bytes : std::string())
      MMFREE_CHECK(DataError, c == 0 || c == 1, where, "is ", int(uint8_t(c)), ", expected false (0) or true (1)");
    keys_.emplace_back(key, std::move(value));
  }
  const GgufValue* alignment = find("general.alignment");
  if (!alignment) return;
  uint32_t n = 0;
  if (alignment->type == GgufType::u32) std::memcpy(&n, alignment->bytes.data(), 4);
  MMFREE_CHECK(DataError, n >= 1 && n <= 1u << 20 && (n & (n - 1)) == 0, path_,
               ": general.alignment must be a u32, a power of two up to 2^20");
  alignment_ = n;
}

void GgufReader::read_tensors(Cursor& in, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    GgufTensor t;
    t.name = in.text(kLongestName, "a tensor's name");
    const std::string where = concat(path_, ": tensor ", quote(t.name), ": ");
    MMFREE_CHECK(DataError, index_.emplace(t.name, tensors_.size()).second, where, "is there twice");
    const uint32_t rank = in.number<uint32_t>("a rank");
    MMFREE_CHECK(DataError, rank >= 1 && rank <= 4, where, "has ", rank, " dimensions, expected 1..4");
    std::vector<int64_t> shape(rank);
    for (uint32_t d = rank; d-- > 0;) {
      const uint64_t n = in.number<uint64_t>("a shape");
      MMFREE_CHECK(DataError, n >= 1 && n <= uint64_t(INT64_MAX), where, "has an extent of ", n,
                   ", expected 1..2^63-1");
      shape[d] = int64_t(n);
    }
    const uint32_t type = in.number<uint32_t>("a type");
    const bool known = std::any_of(std::begin(kAllGgmlTypes), std::end(kAllGgmlTypes),
                                   [&](GgmlType g) { return uint32_t(g) == type; });
    MMFREE_CHECK(DataError, known, where, "has type ", type,
                 "; this program reads F32, F16, BF16, Q8_0, TQ1_0, TQ2_0 and Q2_0");
    t.type = GgmlType(type);
    t.shape = Shape(shape);
    t.bytes = tensor_bytes(t.type, t.shape);
    MMFREE_CHECK(DataError, t.bytes > 0, where, t.shape, " is no shape of type ", name_of(t.type),
                 ", whose rows consist of groups of ", group_size(t.type));
    const uint64_t offset = in.number<uint64_t>("an offset");
    const int64_t expected = tensors_.empty() ? 0 : aligned(tensors_.back().offset + tensors_.back().bytes, alignment_);
    MMFREE_CHECK(DataError, offset == uint64_t(expected), where, "its data start at ", offset, ", expected ", expected);
    t.offset = expected;
    MMFREE_CHECK(DataError, t.bytes <= size_ - t.offset, where, "has ", t.bytes, " bytes at ", t.offset,
                 " of a file of ", size_, "; truncated?");
    tensors_.push_back(std::move(t));
  }
  data_begin_ = aligned(in.position(), alignment_);
  const int64_t end = tensors_.empty() ? 0 : tensors_.back().offset + tensors_.back().bytes;
  MMFREE_CHECK(DataError, tensors_.empty() || end <= size_ - data_begin_, path_, ": has ", size_,
               " bytes, its tensors end at ", data_begin_ + end, "; truncated?");
}

const GgufValue* GgufReader::find(const std::string& key) const {
  const auto found = key_index_.find(key);
  return found == key_index_.end() ? nullptr : &keys_[found->second].second;
}

const std::string& GgufReader::text(const std::string& key) const {
  const GgufValue* value = find(key);
  MMFREE_CHECK(DataError, value && value->type == GgufType::text, path_, ": has no string ", quote(key));
  return value->texts[0];
}

const GgufTensor& GgufReader::tensor(const std::string& name) const {
  const auto found = index_.find(name);
  MMFREE_CHECK(DataError, found != index_.end(), path_, ": has no tensor ", quote(name));
  return tensors_[found->second];
}

std::vector<uint8_t> GgufReader::bytes(const std::string& name) const {
  const GgufTensor& t = tensor(name);
  std::vector<uint8_t> out(size_t(t.bytes));
  read_exactly(file_, path_, data_begin_ + t.offset, out.data(), t.bytes);
  return out;
}

Tensor GgufReader::read(const std::string& name) const {
  const GgufTensor& t = tensor(name);
  Tensor values(t.shape, DType::f32);
  ggml_unpack(t.type, bytes(name).data(), values.size(), values.mut<float>());
  const float* x = values.data<float>();
  MMFREE_CHECK(DataError, std::all_of(x, x + values.size(), [](float v) { return std::isfinite(v); }), path_,
               ": tensor ", quote(name), " holds a value that is not finite");
  return values;
}

std::vector<uint8_t> packed(const std::string& where, GgmlType type, const Tensor& values) {
  const float* x = values.data<float>();
  const int64_t n = values.size();
  float most = 0;
  bool finite = true;
  for (int64_t i = 0; i < n; ++i) finite &= std::isfinite(x[i]), most = std::max(most, std::abs(x[i]));
  MMFREE_CHECK(DataError, finite, where, ": holds a value that is not finite");
  const bool wide = type == GgmlType::f32 || type == GgmlType::bf16;
  MMFREE_CHECK(DataError, wide || most <= 65504, where, ": holds ", most, ", and ", name_of(type),
               " nothing above 65504, the largest F16; use F32");
  std::vector<uint8_t> out(size_t(tensor_bytes(type, values.shape())));
  ggml_pack(type, x, n, out.data());
  return out;
}

std::string gguf_hash(const GgufKeys& keys, const std::vector<GgufTensor>& tensors,
                      const std::function<std::vector<uint8_t>(size_t)>& bytes_of) {
  std::string text;
  for (const auto& [key, value] : keys)
    if (key != kGgufHash) text += counted(key) + value.serialized();
  for (size_t i = 0; i < tensors.size(); ++i) {
    const std::vector<uint8_t> bytes = bytes_of(i);
    text += concat('\n', tensors[i].name, ' ', name_of(tensors[i].type), ' ', tensors[i].shape, ' ',
                   hex16(hash64({reinterpret_cast<const char*>(bytes.data()), bytes.size()})));
  }
  return hex16(hash64(text));
}

void verify_gguf(const std::string& path) {
  const GgufReader file(path);
  MMFREE_CHECK(DataError, file.find(kGgufHash), path,
               ": holds no hash to compare with: another program than mmfree wrote it");
  const std::string hash =
      gguf_hash(file.keys(), file.tensors(), [&](size_t i) { return file.bytes(file.tensors()[i].name); });
  MMFREE_CHECK(DamagedError, hash == file.text(kGgufHash), path,
               ": content does not match its hash: the file is damaged, or changed since it was exported");
}

}  // namespace mmfree
