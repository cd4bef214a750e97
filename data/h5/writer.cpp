#include <algorithm>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <optional>

#include "core/system/files.h"
#include "data/h5/file.h"
#include "data/h5/h5.h"

namespace mmfree::h5 {

namespace {

/// A window is a few KiB, and HDF5 reads and checks whole chunks: small ones make random reads of a series cheap.
constexpr int64_t kSeriesChunk = 32768;

struct Range {
  int64_t min, max;
};

Range range_of(SeriesType type) {
  if (type == SeriesType::u8) return {0, std::numeric_limits<uint8_t>::max()};
  if (type == SeriesType::u16) return {0, std::numeric_limits<uint16_t>::max()};
  if (type == SeriesType::u32) return {0, std::numeric_limits<uint32_t>::max()};
  return {std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()};
}

hid_t file_type(SeriesType type) {
  if (type == SeriesType::u8) return H5T_STD_U8LE;
  if (type == SeriesType::u16) return H5T_STD_U16LE;
  return type == SeriesType::u32 ? H5T_STD_U32LE : H5T_STD_I64LE;
}

/// Values as the file holds them: little-endian, each in the lowest bytes of its number.
std::string stored_form(const std::vector<int64_t>& values, size_t width) {
  std::string bytes(values.size() * width, '\0');
  for (size_t i = 0; i < values.size(); ++i) std::memcpy(&bytes[i * width], &values[i], width);
  return bytes;
}

/// Chunk extents of at most kChunkBytes in all, whole inner rows first, the rows spread evenly over the chunks.
void chunk_of(const Shape& shape, int64_t item_bytes, hsize_t* chunk) {
  int64_t budget = kChunkBytes / item_bytes;
  for (int i = shape.rank() - 1; i >= 0; --i) {
    const int64_t largest = std::clamp<int64_t>(budget, 1, shape[i]);
    const int64_t parts = (shape[i] + largest - 1) / largest;
    const int64_t extent = (shape[i] + parts - 1) / parts;
    chunk[i] = hsize_t(extent);
    budget /= extent;
  }
}

Id dataset_list() {
  Id list(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  H5Pset_obj_track_times(list, false);
  return list;
}

}  // namespace

struct Writer::Impl {
  struct Series {
    Id dataset;
    SeriesType type;
    int64_t written = 0;
    std::vector<int64_t> pending;  // less than one chunk, so that HDF5 never has to read a chunk back
    std::vector<int64_t> sums;     // of the chunks that are written
  };

  std::string path, kind, hash;
  DurableFile output;
  File file;
  Id hdf5;
  std::map<std::string, Series> series;  // closed before the file

  Impl(const std::string& path, const std::string& kind);

  void require(bool ok, const std::string& what) const {
    file.check();
    MMFREE_CHECK(IoError, ok, path, ": hdf5 cannot write ", what);
  }
  void make_groups(const std::string& name) const;
  Id create(const std::string& name, hid_t type, hid_t space, hid_t list) const;
  void write(const std::string& name, DType dtype, const Shape& shape,
             const std::function<const void*(int64_t, int64_t)>& rows_at);
  void flush(const std::string& name, Series& s);
  template <class T>
  void append(const std::string& name, const T* values, int64_t n);
  void attribute(const std::string& name, hid_t type, hid_t memory, const void* value) const;
};

Writer::Impl::Impl(const std::string& path, const std::string& kind) : path(path), kind(kind), output(path) {
  std::error_code ignored;
  MMFREE_CHECK(CreateError, !std::filesystem::exists(path, ignored) || kind_of(path) == kind, path,
               ": exists and is not an intact file of kind '", kind,
               "', so it is not replaced: move it away, or choose another name");
  const Session session;
  file.path = path;
  file.fd = output.fd().get();

  const Id access = access_list(&file);
  // A metadata entry once evicted would be read back, possibly from where a write has failed.
  H5AC_cache_config_t cache{};
  cache.version = H5AC__CURR_CACHE_CONFIG_VERSION;
  H5Pget_mdc_config(access, &cache);
  cache.evictions_enabled = false;
  cache.incr_mode = H5C_incr__off;
  cache.flash_incr_mode = H5C_flash_incr__off;
  cache.decr_mode = H5C_decr__off;
  H5Pset_mdc_config(access, &cache);

  const Id creation(H5Pcreate(H5P_FILE_CREATE), H5Pclose);
  H5Pset_userblock(creation, kUserBlockBytes);
  H5Pset_obj_track_times(creation, false);
  hdf5 = Id(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation, access), H5Fclose);
  require(hdf5 >= 0, "the file");
}

void Writer::Impl::make_groups(const std::string& name) const {
  const Id list(H5Pcreate(H5P_GROUP_CREATE), H5Pclose);
  H5Pset_obj_track_times(list, false);
  for (size_t at = name.find('/'); at != std::string::npos; at = name.find('/', at + 1)) {
    const std::string group = name.substr(0, at);
    if (H5Lexists(hdf5, group.c_str(), H5P_DEFAULT) > 0) continue;
    const Id made(H5Gcreate2(hdf5, group.c_str(), H5P_DEFAULT, list, H5P_DEFAULT), H5Gclose);
    require(made >= 0, group);
  }
}

Id Writer::Impl::create(const std::string& name, hid_t type, hid_t space, hid_t list) const {
  make_groups(name);
  Id dataset(H5Dcreate2(hdf5, name.c_str(), type, space, H5P_DEFAULT, list, H5P_DEFAULT), H5Dclose);
  require(dataset >= 0, concat("dataset ", name, " (is the name used twice?)"));
  return dataset;
}

Writer::Writer(const std::string& path, const std::string& kind) : impl_(std::make_unique<Impl>(path, kind)) {}
Writer::~Writer() = default;
Writer::Writer(Writer&&) noexcept = default;

void Writer::write(const std::string& name, DType dtype, const Shape& shape, const void* values) {
  const int64_t row_bytes = shape.rank() && shape[0] ? shape.size() / shape[0] * size_of(dtype) : 0;
  impl_->write(name, dtype, shape,
               [&](int64_t row, int64_t) { return static_cast<const char*>(values) + row * row_bytes; });
}

void Writer::write(const std::string& name, const Tensor& values, const std::function<void(const Tensor&)>& check) {
  Tensor part;
  impl_->write(name, values.dtype(), values.shape(), [&](int64_t row, int64_t rows) {
    part = (values.shape().rank() ? values.slice(row, row + rows) : values).to(Device::cpu);
    if (check) check(part);
    return part.raw();
  });
}

/// `rows_at(row, rows)` gives the values from there on, until it is called again.
void Writer::Impl::write(const std::string& name, DType dtype, const Shape& shape,
                         const std::function<const void*(int64_t, int64_t)>& rows_at) {
  const int rank = shape.rank();
  hsize_t dims[Shape::kMaxRank] = {}, chunk[Shape::kMaxRank] = {}, begin[Shape::kMaxRank] = {};
  for (int i = 0; i < rank; ++i) dims[i] = hsize_t(shape[i]);
  std::optional<Session> session(std::in_place);
  const Id space(rank ? H5Screate_simple(rank, dims, nullptr) : H5Screate(H5S_SCALAR), H5Sclose);
  const Id list = dataset_list();
  const bool chunked = rank && shape.size();
  if (chunked) {
    chunk_of(shape, size_of(dtype), chunk);
    H5Pset_chunk(list, rank, chunk);
    H5Pset_fletcher32(list);
  }
  const hid_t type = memory_type(dtype);
  const Id dataset = create(name, type, space, list);
  if (dtype == DType::bf16) {
    const Id text(H5Tcopy(H5T_C_S1), H5Tclose);
    H5Tset_size(text, 4);
    const Id scalar(H5Screate(H5S_SCALAR), H5Sclose);
    const Id mark(H5Acreate2(dataset, "dtype", text, scalar, H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
    require(mark >= 0 && H5Awrite(mark, text, "bf16") >= 0, name);
  }
  if (!chunked) {
    const bool ok = !shape.size() || H5Dwrite(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, rows_at(0, 1)) >= 0;
    return require(ok, name);
  }
  session.reset();
  // One Session per row of chunks, without what `rows_at` does: readers need turns.
  for (int64_t row = 0; row < shape[0]; row += int64_t(chunk[0])) {
    begin[0] = hsize_t(row);
    dims[0] = hsize_t(std::min<int64_t>(int64_t(chunk[0]), shape[0] - row));
    const void* from = rows_at(row, int64_t(dims[0]));
    const Session writing;
    const Id memory(H5Screate_simple(rank, dims, nullptr), H5Sclose);
    H5Sselect_hyperslab(space, H5S_SELECT_SET, begin, nullptr, dims, nullptr);
    require(H5Dwrite(dataset, type, memory, space, H5P_DEFAULT, from) >= 0, name);
  }
}

void Writer::create_series(const std::string& name, SeriesType type, bool compressed) {
  const Session session;
  const hsize_t none = 0, unlimited = H5S_UNLIMITED, chunk = kSeriesChunk;
  const Id space(H5Screate_simple(1, &none, &unlimited), H5Sclose);
  const Id list = dataset_list();
  H5Pset_chunk(list, 1, &chunk);
  if (compressed) {
    constexpr unsigned kFast = 1;
    H5Pset_shuffle(list);
    H5Pset_deflate(list, kFast);
  }
  H5Pset_fletcher32(list);
  impl_->series[name] = {impl_->create(name, file_type(type), space, list), type, 0, {}, {}};
}

void Writer::Impl::flush(const std::string& name, Series& s) {
  const hsize_t begin = hsize_t(s.written), n = s.pending.size(), total = begin + n;
  if (!n) return;
  require(H5Dset_extent(s.dataset, &total) >= 0, name);
  const Id space(H5Dget_space(s.dataset), H5Sclose), memory(H5Screate_simple(1, &n, nullptr), H5Sclose);
  H5Sselect_hyperslab(space, H5S_SELECT_SET, &begin, nullptr, &n, nullptr);
  const hid_t type = file_type(s.type);
  const std::string stored = stored_form(s.pending, H5Tget_size(type));
  require(H5Dwrite(s.dataset, type, memory, space, H5P_DEFAULT, stored.data()) >= 0, name);
  s.sums.push_back(int64_t(hash64(stored)));
  s.written = int64_t(total);
  s.pending.clear();
}

template <class T>
void Writer::Impl::append(const std::string& name, const T* values, int64_t n) {
  const Session session;
  const auto found = series.find(name);
  MMFREE_CHECK(Error, found != series.end(), path, ": append to ", name, ", which create_series did not declare");
  Series& s = found->second;
  const Range range = range_of(s.type);
  for (int64_t i = 0; i < n; ++i) {
    MMFREE_CHECK(Error, values[i] >= range.min && values[i] <= range.max, path, ": ", int64_t(values[i]),
                 " does not fit the type of ", name);
    s.pending.push_back(values[i]);
    if (int64_t(s.pending.size()) == kSeriesChunk) flush(name, s);
  }
}

void Writer::append(const std::string& name, const uint8_t* values, int64_t n) { impl_->append(name, values, n); }
void Writer::append(const std::string& name, const int32_t* values, int64_t n) { impl_->append(name, values, n); }
void Writer::append(const std::string& name, const int64_t* values, int64_t n) { impl_->append(name, values, n); }

void Writer::Impl::attribute(const std::string& name, hid_t type, hid_t memory, const void* value) const {
  const Id scalar(H5Screate(H5S_SCALAR), H5Sclose);
  const Id made(H5Acreate2(hdf5, name.c_str(), type, scalar, H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
  require(made >= 0 && H5Awrite(made, memory, value) >= 0, concat("attribute ", name));
}

void Writer::attribute(const std::string& name, const std::string& value) {
  const Session session;
  const Id type(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(type, value.size() + 1);  // HDF5 has no empty strings: the terminating zero is part of the value
  H5Tset_cset(type, H5T_CSET_UTF8);
  impl_->attribute(name, type, type, value.c_str());
}
void Writer::attribute(const std::string& name, int64_t value) {
  const Session session;
  impl_->attribute(name, H5T_STD_I64LE, H5T_NATIVE_INT64, &value);
}

void Writer::write_sums(const std::vector<int64_t>& sums) {
  write(kSums, DType::i64, {int64_t(sums.size())}, sums.data());
  attribute(kSums, sum_of_sums(sums));
}

void Writer::commit() {
  Impl& w = *impl_;
  {
    const Session session;
    if (!w.series.empty()) {
      std::vector<int64_t> sums;
      for (auto& [name, s] : w.series) {
        w.flush(name, s);
        sums.insert(sums.end(), s.sums.begin(), s.sums.end());
      }
      write_sums(sums);
    }
    w.series.clear();
    w.require(w.hdf5.reset() >= 0, "the file's end");
  }
  w.file.check();
  UserBlock block{w.kind, size_of_file(w.output.fd(), w.path), {}};
  ContentHash hash;
  hash.read_up_to(w.file, block.file_bytes);
  w.file.check();
  block.hash = hash.digest();
  write_user_block(w.file, block);
  w.file.check();
  w.output.commit();
  w.hash = block.hash_hex();
}

const std::string& Writer::hash() const { return impl_->hash; }

std::string add_sums(const std::string& path) {
  const Reader shard(path, "tokens", Verify::header);
  const std::vector<int64_t> sums = shard.compute_sums();
  // Last: whatever was harmed before its sum was taken fails here.
  const Reader verified(path, "tokens", Verify::everything);
  MMFREE_CHECK(DataError, verified.hash() == shard.hash(), path, ": was replaced while it was read; start again");
  try {
    Writer table(path + kSumsSuffix, kSums);
    table.attribute("shard", shard.hash());
    table.write_sums(sums);
    table.commit();
    return {};
  } catch (const Error& e) {
    return e.what();
  }
}

}  // namespace mmfree::h5
