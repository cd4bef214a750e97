#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <span>

#include "core/system/files.h"
#include "data/h5/deflate.h"
#include "data/h5/file.h"
#include "data/h5/h5.h"
#include "data/h5/structure.h"

namespace mmfree::h5 {

namespace {

constexpr int kMaxDepth = 16;
constexpr size_t kMaxObjects = 1 << 20;
constexpr size_t kMaxAttributeBytes = size_t(32) << 20;
constexpr hsize_t kChecksumBytes = 4;

struct Dataset {
  Id id, type;
  Shape shape;
  DType dtype = DType::f32;
  hsize_t chunk[Shape::kMaxRank] = {};  // extents; all 0 if it is not stored in chunks
  hsize_t chunk_bytes = 0;
  bool is_compressed = false;
  bool is_series = false;         // one that is not empty
  std::span<const int64_t> sums;  // of a series' chunks, if they are known
  int64_t held = -1;              // number of the chunk of a series that was read last
  std::string held_bytes;         // its values as they are stored, compared with their sum

  int64_t chunks() const { return is_series ? (shape[0] - 1) / int64_t(chunk[0]) + 1 : 0; }
};

/// fletcher32, after shuffle and deflate or alone.
bool has_our_filters(hid_t list) {
  constexpr H5Z_filter_t kFilters[] = {H5Z_FILTER_SHUFFLE, H5Z_FILTER_DEFLATE, H5Z_FILTER_FLETCHER32};
  const int count = H5Pget_nfilters(list);
  if (count != 1 && count != 3) return false;
  for (int i = 0; i < count; ++i) {
    unsigned flags = 0;
    size_t values = 0;
    if (H5Pget_filter2(list, unsigned(i), &flags, &values, nullptr, 0, nullptr, nullptr) != kFilters[3 - count + i])
      return false;
  }
  return true;
}

bool is_float(DType t) { return t == DType::f32 || t == DType::f64; }

}  // namespace

struct Reader::Impl {
  std::string path, hash;
  UserBlock block;
  Fd input;
  File file;
  Id hdf5;
  std::map<std::string, Dataset> datasets;  // closed before the file
  std::set<std::pair<unsigned long, haddr_t>> seen;
  hsize_t stored_bytes = 0;                  // of all datasets so far
  bool is_intact = false;                    // the content matches its hash
  std::optional<std::vector<int64_t>> sums;  // of the chunks of all series, which stand in the order of their names

  /// A failed read explains whatever HDF5 then made of it, so it is reported first. In an intact file HDF5 fails for
  /// other reasons than damage, as for lack of memory.
  template <class... Parts>
  void require(bool ok, const Parts&... parts) const {
    file.check();
    MMFREE_CHECK(DataError, ok || !is_intact, path, ": ", parts...);
    MMFREE_CHECK(DamagedError, ok, path, ": ", parts...);
  }
  void open(const std::string& kind, Verify verify);
  void verify_content();
  void walk(Structure& structure, hid_t group, const std::string& prefix, int depth);
  void visit(Structure& structure, hid_t group, const std::string& link, const std::string& name, int depth);
  Dataset inspect(Id id, const std::string& name);
  void check_storage(Dataset& d, hsize_t item_bytes, const std::string& name);
  void check_chunks(const Dataset& d, int64_t begin_row, int64_t rows, const std::string& name) const;
  DType type_of(hid_t dataset, hid_t type, const std::string& name) const;
  Id attribute(const std::string& name, H5T_class_t type, size_t* bytes) const;
  Dataset& find(const std::string& name);
  void read_rows(const Dataset& d, int64_t begin_row, int64_t rows, hid_t type, void* out,
                 const std::string& name) const;
  void read_series(Dataset& d, int64_t begin_row, int64_t rows, DType type, void* out, const std::string& name);
  std::string inflated_chunk(const Dataset& d, int64_t begin, const std::string& name) const;
  void hold(Dataset& d, int64_t chunk, const std::string& name) const;
  void take_sums(const Reader& table);
};

void Reader::Impl::open(const std::string& kind, Verify verify) {
  file.path = path;
  input = open_input(path);
  file.fd = input.get();
  file.end = size_of_file(input, path);
  require(file.end > kUserBlockBytes, "not an mmfree file: only ", file.end, " bytes long");
  block = read_user_block(file);
  MMFREE_CHECK(DataError, block.kind == kind, path, ": a ", quote(block.kind), " file where a '", kind,
               "' file is expected");
  require(block.file_bytes == file.end, file.end, " bytes long, but ", block.file_bytes,
          " were written: truncated or changed; restore the file from a copy");
  if (verify != Verify::header) file.content.emplace();
  if (verify == Verify::everything) verify_content();
  hash = block.hash_hex();
  Structure structure(file);
  structure.check_root();
  const Session session;
  const Id access = access_list(&file);
  H5Pset_cache(access, 0, 0, 0, 0);  // a series holds a chunk itself, and a checkpoint's chunks are read once
  hdf5 = Id(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access), H5Fclose);
  require(hdf5 >= 0, "hdf5 cannot open it");
  const Id root(H5Gopen2(hdf5, "/", H5P_DEFAULT), H5Gclose);
  require(root >= 0, "hdf5 cannot open its root group");
  walk(structure, root, "", 0);
}

void Reader::Impl::verify_content() {
  if (!file.content) return;
  file.content->read_up_to(file, file.end);
  require(file.content->digest() == block.hash,
          "damaged: the content does not match its hash; restore the file from a copy");
  file.content.reset();
  is_intact = true;
}

void Reader::Impl::walk(Structure& structure, hid_t group, const std::string& prefix, int depth) {
  require(depth < kMaxDepth, "groups nested deeper than ", kMaxDepth);
  struct Links {
    std::vector<std::pair<std::string, haddr_t>> hard;
    bool others = false;
  } links;
  // No exception may pass through HDF5.
  const auto collect = [](hid_t, const char* name, const H5L_info_t* info, void* to) noexcept -> herr_t {
    auto* found = static_cast<Links*>(to);
    if (info->type != H5L_TYPE_HARD) return found->others = true;  // and stop
    found->hard.emplace_back(name, info->u.address);
    return found->hard.size() < kMaxObjects ? 0 : -1;
  };
  const herr_t listed = H5Literate(group, H5_INDEX_NAME, H5_ITER_NATIVE, nullptr, collect, &links);
  require(!links.others, "soft or external link in group ", quote(prefix), "; only hard links are allowed");
  require(listed >= 0, "hdf5 cannot list group ", quote(prefix));
  for (const auto& [link, address] : links.hard) {
    structure.check_object(address, quote(prefix + link));
    visit(structure, group, link, prefix + link, depth);
  }
}

void Reader::Impl::visit(Structure& structure, hid_t group, const std::string& link, const std::string& name,
                         int depth) {
  H5O_info_t info{};
  const herr_t got = H5Oget_info_by_name2(group, link.c_str(), &info, H5O_INFO_BASIC, H5P_DEFAULT);
  require(got >= 0, "hdf5 cannot read object ", quote(name));
  require(seen.emplace(info.fileno, info.addr).second, quote(name), " is a second link to the same object");
  require(seen.size() < kMaxObjects, "more than ", kMaxObjects, " objects");
  if (info.type == H5O_TYPE_GROUP) {
    const Id child(H5Gopen2(group, link.c_str(), H5P_DEFAULT), H5Gclose);
    require(child >= 0, "hdf5 cannot open group ", quote(name));
    return walk(structure, child, name + "/", depth + 1);
  }
  require(info.type == H5O_TYPE_DATASET, quote(name), " is neither a group nor a dataset");
  Id id(H5Dopen2(group, link.c_str(), H5P_DEFAULT), H5Dclose);
  require(id >= 0, "hdf5 cannot open dataset ", quote(name));
  datasets.emplace(name, inspect(std::move(id), name));
}

/// Refuses types that Writer never makes, for HDF5 would convert any.
DType Reader::Impl::type_of(hid_t dataset, hid_t type, const std::string& name) const {
  const std::pair<hid_t, DType> known[] = {
      {H5T_IEEE_F32LE, DType::f32}, {H5T_IEEE_F64LE, DType::f64}, {H5T_STD_I8LE, DType::i8},  {H5T_STD_U8LE, DType::u8},
      {H5T_STD_I32LE, DType::i32},  {H5T_STD_U32LE, DType::i64},  {H5T_STD_I64LE, DType::i64}};
  for (const auto& [stored, dtype] : known)
    if (H5Tequal(type, stored) > 0) return dtype;
  require(H5Tequal(type, H5T_STD_U16LE) > 0, "dataset ", quote(name), " has a type that mmfree does not write");
  return H5Aexists(dataset, "dtype") > 0 ? DType::bf16 : DType::i32;
}

/// That the file has room for all of the data, for HDF5 allocates what the extents say. Sets the dataset's chunks.
void Reader::Impl::check_storage(Dataset& d, hsize_t item_bytes, const std::string& name) {
  const int rank = d.shape.rank();
  const Id list(H5Dget_create_plist(d.id), H5Pclose);
  require(list >= 0, "dataset ", quote(name), " has no creation properties");
  require(H5Pget_external_count(list) == 0, "dataset ", quote(name), " is stored in an external file");
  const H5D_layout_t layout = H5Pget_layout(list);
  require(layout == H5D_CONTIGUOUS || layout == H5D_CHUNKED, "dataset ", quote(name),
          " has a virtual or unknown layout");
  hsize_t part[Shape::kMaxRank] = {}, part_bytes = item_bytes, parts = 1;  // of a chunk or of all
  if (layout == H5D_CHUNKED) {
    require(has_our_filters(list), "dataset ", quote(name), " has other filters than mmfree writes");
    d.is_compressed = H5Pget_nfilters(list) > 1;
    require(H5Pget_chunk(list, Shape::kMaxRank, part) == rank, "dataset ", quote(name), " has chunks of another rank");
  } else {
    require(H5Pget_nfilters(list) == 0, "dataset ", quote(name), " has filters");
    for (int i = 0; i < rank; ++i) part[i] = hsize_t(d.shape[i]);
  }
  for (int i = 0; i < rank; ++i)
    if (d.shape[i] == 0) return;  // nothing is stored
  // Compressed chunks are small, and each takes some bytes of the file.
  require(!d.is_compressed || rank == 1, "dataset ", quote(name), " is compressed and no series");
  if (d.is_compressed) require(part[0] <= hsize_t(kChunkBytes), "dataset ", quote(name), " has large chunks");
  constexpr hsize_t kMostBytes = hsize_t(1) << 40;
  const auto file_bytes = hsize_t(file.end);
  const hsize_t room = d.is_compressed ? std::min(file_bytes, kMostBytes) * hsize_t(kChunkBytes) : file_bytes;
  for (int i = 0; i < rank; ++i) {
    const hsize_t extent = hsize_t(d.shape[i]), along = extent / part[i] + (extent % part[i] != 0);
    require(part[i] <= room / part_bytes && along <= room / parts, "dataset ", quote(name), " is larger than the file");
    part_bytes *= part[i], parts *= along;
  }
  require(parts <= room / part_bytes, "dataset ", quote(name), " is larger than the file");
  stored_bytes += d.is_compressed ? parts : parts * part_bytes;
  require(stored_bytes <= file_bytes, "dataset ", quote(name), " shares its place with another");
  if (layout == H5D_CONTIGUOUS)
    return require(H5Dget_storage_size(d.id) == part_bytes, "dataset ", quote(name), " is not stored in full");
  std::copy_n(part, rank, d.chunk);
  d.chunk_bytes = part_bytes;
}

/// That the chunks of these rows are stored at their full size. HDF5 reads behind the end of a shorter one and takes an
/// absent one for zeros.
void Reader::Impl::check_chunks(const Dataset& d, int64_t begin_row, int64_t rows, const std::string& name) const {
  if (!d.chunk_bytes) return;
  hsize_t at[Shape::kMaxRank] = {hsize_t(begin_row) / d.chunk[0] * d.chunk[0]};
  while (at[0] < hsize_t(begin_row + rows)) {
    hsize_t stored = 0;
    const herr_t found = H5Dget_chunk_storage_size(d.id, at, &stored);
    const hsize_t full = d.chunk_bytes + kChecksumBytes;
    require(found >= 0 && (stored == full || (d.is_compressed && stored > kChecksumBytes && stored < full)), "dataset ",
            quote(name), " is not stored in full");
    int i = d.shape.rank() - 1;
    for (; i > 0 && (at[i] += d.chunk[i]) >= hsize_t(d.shape[i]); --i) at[i] = 0;
    if (i == 0) at[0] += d.chunk[0];
  }
}

Dataset Reader::Impl::inspect(Id id, const std::string& name) {
  const Id space(H5Dget_space(id), H5Sclose);
  Id type(H5Dget_type(id), H5Tclose);
  const H5S_class_t space_class = H5Sget_simple_extent_type(space);
  require(space_class == H5S_SIMPLE || space_class == H5S_SCALAR, "dataset ", quote(name), " has no extent");
  const int rank = H5Sget_simple_extent_ndims(space);
  require(rank >= 0 && rank <= Shape::kMaxRank, "dataset ", quote(name), " has rank ", rank, ", at most 4 is allowed");
  hsize_t dims[Shape::kMaxRank] = {}, most[Shape::kMaxRank] = {};
  H5Sget_simple_extent_dims(space, dims, most);
  int64_t extents[Shape::kMaxRank] = {};
  for (int i = 0; i < rank; ++i) {
    require(dims[i] <= hsize_t(INT64_MAX) / 8, "dataset ", quote(name), " has a huge extent");
    extents[i] = int64_t(dims[i]);
  }
  Dataset d;
  d.id = std::move(id), d.type = std::move(type), d.shape = Shape(std::span(extents, size_t(rank)));
  d.dtype = type_of(d.id, d.type, name);
  check_storage(d, H5Tget_size(d.type), name);
  d.is_series = rank == 1 && most[0] == H5S_UNLIMITED && d.chunk_bytes > 0;
  return d;
}

Dataset& Reader::Impl::find(const std::string& name) {
  const auto found = datasets.find(name);
  MMFREE_CHECK(DataError, found != datasets.end(), path, ": has no dataset ", quote(name));
  return found->second;
}

std::string kind_of(const std::string& path) {
  const Fd input = open_input(path);
  File file;
  file.path = path;
  file.fd = input.get();
  file.end = size_of_file(input, path);
  try {
    return read_user_block(file).kind;
  } catch (const DamagedError&) {
    return {};
  }
}

Reader::Reader(const std::string& path, const std::string& expected_kind, Verify verify)
    : impl_(std::make_unique<Impl>()) {
  impl_->path = path;
  impl_->open(expected_kind, verify);
  if (has(kSums) && expected_kind != kSums) impl_->take_sums(*this);
  if (has(kSums) || expected_kind != "tokens") return;
  const std::string beside = path + kSumsSuffix;
  std::error_code error;
  if (!std::filesystem::exists(beside, error) && (!error || leads_nowhere(error))) return;
  const Reader table(beside, kSums);
  MMFREE_CHECK(DataError, table.attribute_string("shard") == hash(), beside,
               ": holds the checksums of another shard than ", path, "; remove it");
  impl_->take_sums(table);
}
Reader::~Reader() = default;
Reader::Reader(Reader&&) noexcept = default;

void Reader::verify_content() const { impl_->verify_content(); }
const std::string& Reader::path() const { return impl_->path; }
const std::string& Reader::hash() const { return impl_->hash; }
bool Reader::has(const std::string& name) const { return impl_->datasets.count(name) > 0; }
Shape Reader::shape(const std::string& name) const { return impl_->find(name).shape; }
DType Reader::dtype(const std::string& name) const { return impl_->find(name).dtype; }

std::vector<std::string> Reader::names(const std::string& prefix) const {
  std::vector<std::string> out;
  for (auto it = impl_->datasets.lower_bound(prefix); it != impl_->datasets.end(); ++it) {
    if (!it->first.starts_with(prefix)) break;
    out.push_back(it->first);
  }
  return out;
}

void Reader::read(const std::string& name, int64_t begin_row, int64_t rows, DType type, void* out) const {
  const Session session;
  Dataset& d = impl_->find(name);
  const bool convertible = is_float(type) == is_float(d.dtype) && (type == DType::bf16) == (d.dtype == DType::bf16);
  MMFREE_CHECK(DataError, convertible, impl_->path, ": dataset ", quote(name), " holds ", name_of(d.dtype),
               ", cannot be read as ", name_of(type));
  const int rank = d.shape.rank();
  const int64_t all = rank ? d.shape[0] : 1;
  MMFREE_CHECK(ShapeError, begin_row >= 0 && rows >= 0 && begin_row <= all && rows <= all - begin_row, impl_->path,
               ": rows [", begin_row, ", +", rows, ") of dataset ", quote(name), ", which has ", all);
  if (rows == 0 || d.shape.size() == 0) return;
  if (d.is_series) return impl_->read_series(d, begin_row, rows, type, out, name);
  impl_->read_rows(d, begin_row, rows, memory_type(type), out, name);
}

void Reader::Impl::read_rows(const Dataset& d, int64_t begin_row, int64_t rows, hid_t type, void* out,
                             const std::string& name) const {
  check_chunks(d, begin_row, rows, name);
  const int rank = d.shape.rank();
  hsize_t begin[Shape::kMaxRank] = {hsize_t(begin_row)}, count[Shape::kMaxRank] = {};
  for (int i = 0; i < rank; ++i) count[i] = hsize_t(i ? d.shape[i] : rows);
  const Id space(H5Dget_space(d.id), H5Sclose);
  const Id memory(rank ? H5Screate_simple(rank, count, nullptr) : H5Screate(H5S_SCALAR), H5Sclose);
  if (rank) H5Sselect_hyperslab(space, H5S_SELECT_SET, begin, nullptr, count, nullptr);
  const herr_t done = H5Dread(d.id, type, memory, space, H5P_DEFAULT, out);
  require(done >= 0, "dataset ", quote(name), " cannot be read: its checksum or layout is damaged");
}

/// By whole chunks, of which one is held: those who read in order read each once.
void Reader::Impl::read_series(Dataset& d, int64_t begin_row, int64_t rows, DType type, void* out,
                               const std::string& name) {
  const auto extent = int64_t(d.chunk[0]);
  const size_t from_bytes = H5Tget_size(d.type), to_bytes = size_of(type);
  auto* to = static_cast<char*>(out);
  std::string part;
  while (rows > 0) {
    const int64_t skip = begin_row % extent, n = std::min(rows, extent - skip);
    hold(d, begin_row / extent, name);
    part.assign(d.held_bytes, size_t(skip) * from_bytes, size_t(n) * from_bytes);
    part.resize(size_t(n) * std::max(from_bytes, to_bytes));
    const herr_t done = H5Tconvert(d.type, memory_type(type), size_t(n), part.data(), nullptr, H5P_DEFAULT);
    require(done >= 0, "dataset ", quote(name), " cannot be converted to ", name_of(type));
    to = std::copy_n(part.data(), size_t(n) * to_bytes, to);
    begin_row += n, rows -= n;
  }
}

/// The values of a compressed chunk, in full. Its sum stands for HDF5's own checksum, which is not looked at.
std::string Reader::Impl::inflated_chunk(const Dataset& d, int64_t begin, const std::string& name) const {
  constexpr uint32_t kNotDeflated = 2;  // HDF5 leaves a filter out that makes a chunk larger
  require(!d.sums.empty(), "dataset ", quote(name), " is compressed and has no checksums");
  check_chunks(d, begin, 1, name);
  const hsize_t at = hsize_t(begin);
  hsize_t stored = 0;
  uint32_t left_out = 0;
  H5Dget_chunk_storage_size(d.id, &at, &stored);
  std::string bytes(size_t(stored), '\0');
  const herr_t done = H5Dread_chunk(d.id, H5P_DEFAULT, &at, &left_out, bytes.data());
  require(done >= 0 && (left_out == 0 || left_out == kNotDeflated), "dataset ", quote(name), " cannot be read");
  bytes.resize(bytes.size() - kChecksumBytes);
  if (left_out == 0) bytes = inflated(bytes, size_t(d.chunk_bytes));
  require(bytes.size() == size_t(d.chunk_bytes), "dataset ", quote(name), " is damaged at ", begin,
          ": its chunk does not inflate to its size; restore the file from a copy");
  return unshuffled(bytes, H5Tget_size(d.type));
}

/// Reads a chunk of a series, unless it is held, and compares it with its sum, if that is known.
void Reader::Impl::hold(Dataset& d, int64_t chunk, const std::string& name) const {
  if (d.held == chunk) return;
  d.held = -1;
  const auto extent = int64_t(d.chunk[0]);
  const int64_t begin = chunk * extent, n = std::min(extent, d.shape[0] - begin);
  if (d.is_compressed) {
    d.held_bytes = inflated_chunk(d, begin, name).substr(0, size_t(n) * H5Tget_size(d.type));
  } else {
    d.held_bytes.resize(size_t(n) * H5Tget_size(d.type));
    read_rows(d, begin, n, d.type, d.held_bytes.data(), name);
  }
  require(d.sums.empty() || hash64(d.held_bytes) == uint64_t(d.sums[size_t(chunk)]), "dataset ", quote(name),
          " is damaged at ", begin, ": chunk ", chunk, " does not match its checksum; restore the file from a copy");
  d.held = chunk;
}

/// Gives each series its part of the table in this file or in the one beside it.
void Reader::Impl::take_sums(const Reader& table) {
  const Shape shape = table.shape(kSums);
  require(shape.rank() == 1 && table.dtype(kSums) == DType::i64, "its checksums are ", name_of(table.dtype(kSums)), ' ',
          shape, ", expected i64 in one dimension");
  std::vector<int64_t>& all = sums.emplace(size_t(shape[0]));
  table.read(kSums, 0, shape[0], DType::i64, all.data());
  MMFREE_CHECK(DamagedError, sum_of_sums(all) == table.attribute_int(kSums), table.path(),
               ": the checksums of its chunks are damaged; restore the file from a copy");
  int64_t chunks = 0;
  for (const auto& [name, d] : datasets) chunks += d.chunks();
  require(chunks == shape[0], shape[0], " checksums for ", chunks, " chunks");
  const int64_t* next = all.data();
  for (auto& [name, d] : datasets) d.sums = {std::exchange(next, next + d.chunks()), next};
}

bool Reader::has_sums() const { return impl_->sums.has_value(); }

std::vector<int64_t> Reader::compute_sums() const {
  const Session session;
  std::vector<int64_t> sums;
  for (auto& [name, d] : impl_->datasets)
    for (int64_t chunk = 0; chunk < d.chunks(); ++chunk) {
      impl_->hold(d, chunk, name);
      sums.push_back(int64_t(hash64(d.held_bytes)));
    }
  return sums;
}

Tensor Reader::read_tensor(const std::string& name, DType type) const {
  const Shape shape = impl_->find(name).shape;
  Tensor out(shape, type);
  read(name, 0, shape.rank() ? shape[0] : 1, type, out.raw_mut());
  return out;
}

Id Reader::Impl::attribute(const std::string& name, H5T_class_t expected, size_t* bytes) const {
  require(H5Aexists(hdf5, name.c_str()) > 0, "has no attribute '", name, "'");
  Id id(H5Aopen(hdf5, name.c_str(), H5P_DEFAULT), H5Aclose);
  require(id >= 0, "attribute '", name, "' cannot be read");
  const Id type(H5Aget_type(id), H5Tclose), space(H5Aget_space(id), H5Sclose);
  // A string is read as it is stored, a number only from the one form that Writer gives it.
  const bool as_expected = expected == H5T_STRING ? H5Tis_variable_str(type) == 0 : H5Tequal(type, H5T_STD_I64LE) > 0;
  require(H5Tget_class(type) == expected && as_expected, "attribute '", name, "' is not of the expected type");
  require(H5Sget_simple_extent_type(space) == H5S_SCALAR, "attribute '", name, "' is not a single value");
  *bytes = H5Tget_size(type);
  require(*bytes > 0 && *bytes <= std::min(kMaxAttributeBytes, size_t(file.end)), "attribute '", name,
          "' is too large");
  return id;
}

bool Reader::has_attribute(const std::string& name) const {
  const Session session;
  return H5Aexists(impl_->hdf5, name.c_str()) > 0;
}

std::string Reader::attribute_string(const std::string& name) const {
  const Session session;
  size_t bytes = 0;
  const Id id = impl_->attribute(name, H5T_STRING, &bytes);
  const Id type(H5Aget_type(id), H5Tclose);
  std::string value(bytes, '\0');
  const herr_t done = H5Aread(id, type, value.data());
  impl_->require(done >= 0, "attribute '", name, "' cannot be read");
  while (!value.empty() && value.back() == '\0') value.pop_back();
  return value;
}

int64_t Reader::attribute_int(const std::string& name) const {
  const Session session;
  size_t bytes = 0;
  int64_t value = 0;
  const Id id = impl_->attribute(name, H5T_INTEGER, &bytes);
  const herr_t done = H5Aread(id, H5T_NATIVE_INT64, &value);
  impl_->require(done >= 0, "attribute '", name, "' cannot be read");
  return value;
}

}  // namespace mmfree::h5
