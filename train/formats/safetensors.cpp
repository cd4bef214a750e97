#include "train/formats/safetensors.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>

#include "train/formats/strict_json.h"

namespace mmfree {

static_assert(std::endian::native == std::endian::little, "the file's bytes are used as they are");

namespace {

constexpr int64_t kMaxHeader = 100'000'000;
constexpr size_t kMaxRank = 8;
constexpr int64_t kChunk = 1 << 16;  // elements converted at a time

template <class T>
constexpr bool is_float = std::is_floating_point_v<T> || std::is_same_v<T, f16> || std::is_same_v<T, bf16>;

/// Calls `body.operator()<T>()` with the C++ type of a dtype name; false if the name is unknown.
template <class Body>
bool visit_file_dtype(const std::string& name, Body&& body) {
  if (name == "F64") return body.template operator()<double>(), true;
  if (name == "F32") return body.template operator()<float>(), true;
  if (name == "F16") return body.template operator()<f16>(), true;
  if (name == "BF16") return body.template operator()<bf16>(), true;
  if (name == "I64") return body.template operator()<int64_t>(), true;
  if (name == "I32") return body.template operator()<int32_t>(), true;
  if (name == "I16") return body.template operator()<int16_t>(), true;
  if (name == "I8") return body.template operator()<int8_t>(), true;
  if (name == "U8" || name == "BOOL") return body.template operator()<uint8_t>(), true;
  return false;
}

/// Calls `body.operator()<T>()` with the C++ type of a tensor's dtype.
template <class Body>
void visit_dtype(DType t, Body&& body) {
  switch (t) {
    case DType::f64:
      return body.template operator()<double>();
    case DType::f32:
      return body.template operator()<float>();
    case DType::bf16:
      return body.template operator()<bf16>();
    case DType::i8:
      return body.template operator()<int8_t>();
    case DType::u8:
      return body.template operator()<uint8_t>();
    case DType::i32:
      return body.template operator()<int32_t>();
    case DType::i64:
      return body.template operator()<int64_t>();
  }
}

/// Bytes of one element; 0 if the dtype is unknown.
int64_t element_size(const std::string& dtype) {
  int64_t size = 0;
  visit_file_dtype(dtype, [&]<class T>() { size = sizeof(T); });
  return size;
}

/// Converts n values; false if one does not fit (an integer out of range, a finite value that becomes infinite).
template <class From, class To>
bool convert(const From* from, To* to, int64_t n) {
  bool fits = true;
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (is_float<From>) {
      using Wide = std::conditional_t<std::is_same_v<From, double>, double, float>;
      const Wide x = from[i];
      if constexpr (std::is_same_v<To, double>)
        to[i] = x;
      else
        to[i] = To(static_cast<float>(x));
      fits &= std::isfinite(x) ? std::isfinite(static_cast<double>(to[i])) : true;
    } else {
      to[i] = static_cast<To>(from[i]);
      fits &= std::in_range<To>(from[i]);
    }
  }
  return fits;
}

/// Shape x dtype in bytes, or -1 on overflow. A zero extent does not hide an overflow of the others.
int64_t checked_bytes(const std::vector<int64_t>& shape, int64_t element) {
  int64_t product = element;
  bool empty = false;
  for (const int64_t extent : shape) {
    if (extent == 0)
      empty = true;
    else if (__builtin_mul_overflow(product, extent, &product))
      return -1;
  }
  return empty ? 0 : product;
}

/// A list of non-negative integers. `where` names file and tensor.
std::vector<int64_t> integers(const nlohmann::json& list, size_t most, const std::string& where, const char* key) {
  MMFREE_CHECK(DataError, list.is_array() && list.size() <= most, where, key, " must be a list of at most ", most,
               " integers");
  std::vector<int64_t> values;
  for (const nlohmann::json& value : list) {
    MMFREE_CHECK(DataError,
                 value.is_number_unsigned() && value.get<uint64_t>() <= uint64_t(std::numeric_limits<int64_t>::max()),
                 where, key, " must hold non-negative integers below 2^63");
    values.push_back(value.get<int64_t>());
  }
  return values;
}

SafetensorsEntry parse_entry(const std::string& name, const nlohmann::json& info, int64_t data_size,
                             const std::string& path) {
  const std::string where = concat(path, ": tensor ", quote(name), ": ");
  MMFREE_CHECK(DataError,
               info.is_object() && info.size() == 3 && info.contains("dtype") && info.contains("shape") &&
                   info.contains("data_offsets"),
               where, "expected an object of dtype, shape and data_offsets");
  MMFREE_CHECK(DataError, info["dtype"].is_string(), where, "dtype must be a string");
  SafetensorsEntry e{name, info["dtype"].get<std::string>(), integers(info["shape"], kMaxRank, where, "shape")};
  const int64_t element = element_size(e.dtype);
  MMFREE_CHECK(DataError, element > 0, where, "unknown dtype ", quote(e.dtype),
               ", expected one of F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL");
  const int64_t size = checked_bytes(e.shape, element);
  MMFREE_CHECK(DataError, size >= 0, where, "the product of its shape overflows");
  const std::vector<int64_t> offsets = integers(info["data_offsets"], 2, where, "data_offsets");
  MMFREE_CHECK(DataError, offsets.size() == 2, where, "data_offsets must be a pair");
  e.begin = offsets[0], e.end = offsets[1];
  MMFREE_CHECK(DataError, e.begin <= e.end && e.end <= data_size, where, "data_offsets [", e.begin, ", ", e.end,
               "] lie outside the ", data_size, " bytes of data");
  MMFREE_CHECK(DataError, e.end - e.begin == size, where, "has ", e.end - e.begin,
               " bytes of data, its shape and dtype need ", size);
  return e;
}

}  // namespace

f16::f16(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x), magnitude = u & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u)
    half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  else if (magnitude >= 0x477ff000u)  // 65520 and above round to infinity
    half = 0x7c00u;
  else if (magnitude < 0x38800000u)  // below 2^-14: a multiple of 2^-24; 1024 of them are the smallest normal number
    half = uint32_t(std::nearbyint(std::bit_cast<float>(magnitude) * 0x1p24f));
  else
    half = ((magnitude + 0xfffu + ((magnitude >> 13) & 1u)) >> 13) - (uint32_t(127 - 15) << 10);
  bits = uint16_t((u >> 16 & 0x8000u) | half);
}

f16::operator float() const {
  const uint32_t sign = uint32_t(bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
  uint32_t u;
  if (magnitude >= 0x7c00u)
    u = 0x7f800000u | (magnitude & 0x3ffu) << 13;
  else if (magnitude < 0x400u)
    u = std::bit_cast<uint32_t>(float(magnitude) * 0x1p-24f);
  else
    u = (magnitude << 13) + (uint32_t(127 - 15) << 23);
  return std::bit_cast<float>(sign | u);
}

SafetensorsReader::SafetensorsReader(const std::string& path) : path_(path), file_(open_input(path)) {
  const int64_t size = size_of_file(file_, path_);
  MMFREE_CHECK(DataError, size >= 8, path_, ": has ", size, " bytes, too few for a safetensors file");
  uint64_t header_size = 0;
  read_exactly(file_, path_, 0, &header_size, 8);
  MMFREE_CHECK(DataError, header_size <= uint64_t(kMaxHeader), path_, ": claims a header of ", header_size,
               " bytes, at most ", kMaxHeader, " are allowed; not a safetensors file?");
  MMFREE_CHECK(DataError, int64_t(header_size) <= size - 8, path_, ": claims a header of ", header_size,
               " bytes, the file has ", size, "; truncated?");
  std::string header(size_t(header_size), '\0');
  read_exactly(file_, path_, 8, header.data(), int64_t(header_size));
  data_begin_ = 8 + int64_t(header_size), size_ = size;
  parse_header(header, size - data_begin_);
}

void SafetensorsReader::parse_header(const std::string& header, int64_t data_size) {
  MMFREE_CHECK(DataError, !header.empty() && header[0] == '{', path_, ": the header does not start with '{'");
  const nlohmann::json json = parse_json(header, path_);
  for (const auto& [name, info] : json.items()) {
    if (name != "__metadata__") {
      entries_.push_back(parse_entry(name, info, data_size, path_));
      continue;
    }
    MMFREE_CHECK(DataError, info.is_object(), path_, ": __metadata__ must be an object of strings");
    for (const auto& [key, value] : info.items()) {
      MMFREE_CHECK(DataError, value.is_string(), path_, ": __metadata__: ", quote(key), " must be a string");
      metadata_[key] = value.get<std::string>();
    }
  }
  std::sort(entries_.begin(), entries_.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  int64_t at = 0;
  for (const SafetensorsEntry& e : entries_) {
    MMFREE_CHECK(DataError, e.begin == at, path_, ": tensor ", quote(e.name), ": its data start at byte ", e.begin,
                 " of the data, expected ", at, " (a gap or an overlap)");
    at = e.end;
    index_[e.name] = size_t(&e - entries_.data());
  }
  MMFREE_CHECK(DataError, at == data_size, path_, ": has ", data_size, " bytes of data, its tensors cover ", at);
}

const SafetensorsEntry& SafetensorsReader::entry(const std::string& name) const {
  const auto found = index_.find(name);
  MMFREE_CHECK(DataError, found != index_.end(), path_, ": has no tensor ", quote(name));
  return entries_[found->second];
}

std::vector<std::string> SafetensorsReader::names() const {
  std::vector<std::string> out;
  for (const SafetensorsEntry& e : entries_) out.push_back(e.name);
  return out;
}

Shape SafetensorsReader::shape(const std::string& name) const {
  const SafetensorsEntry& e = entry(name);
  MMFREE_CHECK(DataError, e.shape.size() <= size_t(Shape::kMaxRank), path_, ": tensor ", quote(name), ": has ",
               e.shape.size(), " dimensions, at most ", Shape::kMaxRank, " are supported");
  return Shape(e.shape);
}

Tensor SafetensorsReader::read(const std::string& name, DType as) const {
  const SafetensorsEntry& e = entry(name);
  Tensor tensor(shape(name), as);
  const int64_t n = tensor.size(), begin = data_begin_ + e.begin;
  visit_file_dtype(e.dtype, [&]<class From>() {
    visit_dtype(as, [&]<class To>() {
      if constexpr (is_float<From> != is_float<To>) {
        throw DataError(
            concat(path_, ": tensor ", quote(name), ": is ", e.dtype, " and cannot be read as ", name_of(as)));
      } else if constexpr (std::is_same_v<From, To>) {
        read_exactly(file_, path_, begin, tensor.raw_mut(), e.end - e.begin);
      } else {
        std::vector<From> chunk(size_t(std::min(n, kChunk)));
        To* out = tensor.mut<To>();
        for (int64_t i = 0; i < n; i += kChunk) {
          const int64_t count = std::min(kChunk, n - i);
          read_exactly(file_, path_, begin + i * int64_t(sizeof(From)), chunk.data(), count * int64_t(sizeof(From)));
          MMFREE_CHECK(DataError, convert(chunk.data(), out + i, count), path_, ": tensor ", quote(name),
                       ": holds a value that does not fit ", name_of(as));
        }
      }
    });
  });
  return tensor;
}

Tensor SafetensorsReader::map(const std::string& name, DType as) const {
  const SafetensorsEntry& e = entry(name);
  bool same = false;
  visit_file_dtype(e.dtype,
                   [&]<class Stored>() { visit_dtype(as, [&]<class As>() { same = std::is_same_v<Stored, As>; }); });
  const int64_t begin = data_begin_ + e.begin;
  if (!same || begin % size_of(as) != 0 || e.begin == e.end) return read(name, as);
  if (!mapped_) mapped_ = std::make_shared<const MappedFile>(file_, path_, size_);
  return Tensor::borrowed(shape(name), as, mapped_->data() + begin, mapped_);
}

std::vector<char> SafetensorsReader::bytes(const std::string& name) const {
  const SafetensorsEntry& e = entry(name);
  std::vector<char> out(size_t(e.end - e.begin));
  read_exactly(file_, path_, data_begin_ + e.begin, out.data(), e.end - e.begin);
  return out;
}

SafetensorsWriter::SafetensorsWriter(const std::string& path, std::map<std::string, std::string> metadata)
    : path_(path), metadata_(std::move(metadata)), file_(path) {}

void SafetensorsWriter::declare(const std::string& name, const std::string& dtype, const Shape& shape) {
  const std::string where = concat(path_, ": tensor ", quote(name), ": ");
  MMFREE_CHECK(Error, !header_written_, where, "declared after the first write");
  MMFREE_CHECK(DataError, name != "__metadata__" && names_.insert(name).second, where, "name is taken");
  SafetensorsEntry e{name, dtype, {}};
  for (int i = 0; i < shape.rank(); ++i) e.shape.push_back(shape[i]);
  const int64_t element = element_size(dtype);
  MMFREE_CHECK(DataError, element > 0, where, "unknown dtype ", quote(dtype));
  const int64_t size = checked_bytes(e.shape, element);
  e.begin = entries_.empty() ? 0 : entries_.back().end;
  MMFREE_CHECK(DataError, size >= 0 && !__builtin_add_overflow(e.begin, size, &e.end), where, "too large");
  entries_.push_back(std::move(e));
}

void SafetensorsWriter::write_header() {
  std::string header = "{";
  try {
    if (!metadata_.empty()) header += concat("\"__metadata__\":", nlohmann::json(metadata_).dump(), ",");
    for (const SafetensorsEntry& e : entries_)
      header +=
          concat(nlohmann::json(e.name).dump(), ":{\"dtype\":\"", e.dtype,
                 "\",\"shape\":", nlohmann::json(e.shape).dump(), ",\"data_offsets\":[", e.begin, ",", e.end, "]},");
  } catch (const nlohmann::json::exception&) {
    throw DataError(concat(path_, ": a tensor name or the metadata are not valid UTF-8"));
  }
  if (header.back() == ',') header.pop_back();
  header += '}';
  header.resize((header.size() + 7) / 8 * 8, ' ');
  MMFREE_CHECK(DataError, header.size() <= size_t(kMaxHeader), path_, ": the header would have ", header.size(),
               " bytes, at most ", kMaxHeader, " are allowed");
  const uint64_t size = header.size();
  file_.write(&size, sizeof(size));
  file_.write(header.data(), header.size());
  header_written_ = true;
}

void SafetensorsWriter::write(const std::string& name, const Tensor& tensor) {
  MMFREE_CHECK(Error, next_ < entries_.size() && entries_[next_].name == name, path_, ": tensor ", quote(name),
               ": not the next declared one");
  const SafetensorsEntry& e = entries_[next_];
  MMFREE_CHECK(ShapeError, tensor.defined() && tensor.shape() == Shape(e.shape), path_, ": tensor ", quote(name),
               ": declared as ", Shape(e.shape), ", got ", tensor.describe());
  if (!header_written_) write_header();
  const int64_t n = tensor.size();
  visit_dtype(tensor.dtype(), [&]<class From>() {
    visit_file_dtype(e.dtype, [&]<class To>() {
      if constexpr (is_float<From> != is_float<To>) {
        throw DTypeError(
            concat(path_, ": tensor ", quote(name), ": ", name_of(tensor.dtype()), " cannot be written as ", e.dtype));
      } else if constexpr (std::is_same_v<From, To>) {
        file_.write(tensor.raw(), size_t(tensor.bytes()));
      } else {
        std::vector<To> chunk(size_t(std::min(n, kChunk)));
        for (int64_t i = 0; i < n; i += kChunk) {
          const int64_t count = std::min(kChunk, n - i);
          MMFREE_CHECK(DataError, convert(tensor.data<From>() + i, chunk.data(), count), path_, ": tensor ",
                       quote(name), ": holds a value that does not fit ", e.dtype);
          file_.write(chunk.data(), size_t(count) * sizeof(To));
        }
      }
    });
  });
  ++next_;
}

void SafetensorsWriter::commit() {
  MMFREE_CHECK(Error, next_ == entries_.size(), path_, ": ", entries_.size() - next_, " declared tensors not written");
  if (!header_written_) write_header();
  file_.commit();
}

}  // namespace mmfree
