#include "data/h5/structure.h"

#include <cstring>
#include <span>

#include "core/error.h"
#include "core/shape.h"

namespace mmfree::h5 {

namespace {

constexpr uint64_t kNowhere = ~uint64_t(0);
/// Types of header messages, from the HDF5 file format specification, version 3.
enum Message {
  kNil = 0,
  kDataspace = 1,
  kLinkInfo = 2,
  kDatatype = 3,
  kFillValue = 5,
  kLink = 6,
  kLayout = 8,
  kGroupInfo = 10,
  kFilters = 11,
  kAttribute = 12,
  kContinuation = 16,
  kAttributeInfo = 21,
};

bool is_one_of(uint64_t value, uint64_t a, uint64_t b) { return value == a || value == b; }

}  // namespace

/// Little-endian numbers from a part of the file, one after another.
class Structure::Bytes {
 public:
  Bytes(const Structure& owner, std::string bytes) : owner_(&owner), bytes_(std::move(bytes)) {}
  uint64_t left() const { return bytes_.size() - at_; }
  uint64_t number(size_t width) {
    owner_->require(width <= left(), "a message ends too early");
    uint64_t value = 0;
    std::memcpy(&value, bytes_.data() + at_, width);
    at_ += width;
    return value;
  }
  Bytes part(uint64_t n) {
    owner_->require(n <= left(), "a message is longer than its block");
    at_ += n;
    return Bytes(*owner_, bytes_.substr(at_ - n, n));
  }
  void expect(std::initializer_list<int> values, const char* what) {
    for (const int value : values) owner_->require(number(1) == uint64_t(value), what);
  }

 private:
  const Structure* owner_;
  std::string bytes_;
  size_t at_ = 0;
};

void Structure::require(bool ok, const char* what) const {
  file_.check();
  MMFREE_CHECK(DamagedError, ok, file_.path, ": ", object_, " is not of a form that mmfree writes: ", what);
}

/// The n bytes behind `signature` at an address, which counts from the end of the user block.
Structure::Bytes Structure::at(uint64_t address, uint64_t n, const char* signature) {
  const size_t skip = std::strlen(signature);
  const auto end = uint64_t(file_.end - kUserBlockBytes);
  require(address <= end && skip <= end - address && n <= end - address - skip, "an address outside the file");
  std::string bytes(skip + size_t(n), '\0');
  file_.read_at(kUserBlockBytes + int64_t(address), bytes.data(), int64_t(bytes.size()));
  require(bytes.starts_with(signature), "a block without its signature");
  return Bytes(*this, bytes.substr(skip));
}

void Structure::check_root() {
  Bytes block = at(0, 40, "\x89HDF\r\n\x1a\n");
  block.expect({3, 8, 8, 0}, "another version, or sizes that are not 8 bytes");
  require(block.number(8) == uint64_t(kUserBlockBytes), "another base address");
  require(block.number(8) == kNowhere, "a superblock extension");
  require(block.number(8) == uint64_t(file_.end), "its size is not that of the file");
  check_object(block.number(8), "the root group");
}

void Structure::check_object(uint64_t address, const std::string& name) {
  object_ = name;
  Bytes head = at(address, 2, "OHDR");
  head.expect({2}, "an object header of another version");
  const uint64_t flags = head.number(1);
  require((flags & ~uint64_t(7)) == 0, "an object header with times or limits of its own");
  const size_t width = size_t(1) << (flags & 3);
  const uint64_t first = at(address + 6, width, "").number(width);
  std::vector<Bytes> parts = {header_part(address + 6 + width, first, "")};
  for (size_t i = 0; i < parts.size(); ++i) check_messages(std::move(parts[i]), (flags & 4) != 0, &parts);
}

/// Parts of headers do not overlap, so all together they fit into the file.
Structure::Bytes Structure::header_part(uint64_t address, uint64_t n, const char* signature) {
  Bytes part = at(address, n, signature);
  header_bytes_ += n;
  require(header_bytes_ <= uint64_t(file_.end), "more headers than the file has room for");
  return part;
}

void Structure::check_messages(Bytes messages, bool ordered, std::vector<Bytes>* more) {
  const uint64_t head = ordered ? 6 : 4;
  while (messages.left() >= head) {
    const int type = int(messages.number(1));
    const uint64_t size = messages.number(2), flags = messages.number(1);
    if (ordered) messages.number(2);
    Bytes m = messages.part(size);
    require((flags & ~uint64_t(5)) == 0, "a shared message");
    if (type != kContinuation) {
      check_message(type, m);
      continue;
    }
    const uint64_t address = m.number(8), bytes = m.number(8);
    require(bytes >= 8 && bytes <= uint64_t(file_.end), "a continuation of impossible size");
    more->push_back(header_part(address, bytes - 8, "OCHK"));
  }
}

void Structure::check_message(int type, Bytes& m) {
  switch (type) {
    case kNil:
    case kGroupInfo:
      return;
    case kLink:
      return check_link(m);
    case kDataspace:
      return check_dataspace(m);
    case kLinkInfo:
    case kAttributeInfo:
      return check_dense(m);
    case kDatatype:
      return check_datatype(m, 8);
    case kFillValue:
      m.expect({3}, "a fill value of another version");
      return require((m.number(1) & 0x30) == 0, "a fill value");
    case kLayout:
      return check_layout(m);
    case kFilters:
      return check_filters(m);
    case kAttribute:
      return check_attribute(m);
    default:
      require(false, "an unknown message in its header");
  }
}

/// A hard link. HDF5 frees what it never set when it meets a link that it cannot read.
void Structure::check_link(Bytes& m) {
  m.expect({1}, "a link of another version");
  const uint64_t flags = m.number(1);
  require((flags & ~uint64_t(3)) == 0, "a soft or external link, or one with more than name and address");
  const uint64_t name = m.number(size_t(1) << flags);
  require(name > 0, "a link without a name");
  m.part(name);
  at(m.number(8), 0, "OHDR");
}

void Structure::check_dataspace(Bytes& m) {
  m.expect({2}, "a dataspace of another version");
  require(m.number(1) <= uint64_t(Shape::kMaxRank), "more than 4 dimensions");
  require(m.number(1) <= 1, "a dataspace with unknown flags");
  require(m.number(1) <= 1, "a dataspace without extent");
}

/// Integers, floats and strings of at file_bytes `max_bytes` bytes.
void Structure::check_datatype(Bytes& m, uint64_t max_bytes) {
  const uint64_t kind = m.number(1), version = kind >> 4;
  require(version >= 1 && version <= 3, "a datatype of another version");
  require((kind & 15) == 0 || (kind & 15) == 1 || (kind & 15) == 3, "a datatype other than integer, float and string");
  m.number(3);
  const uint64_t size = m.number(4);
  require(size > 0 && size <= max_bytes, "a datatype of impossible size");
}

void Structure::check_attribute(Bytes& m) {
  m.expect({3, 0}, "an attribute of another version");
  const uint64_t name = m.number(2), type = m.number(2), space = m.number(2);
  m.number(1);
  m.part(name);
  Bytes datatype = m.part(type), dataspace = m.part(space);
  check_datatype(datatype, m.left());
  dataspace.expect({2, 0, 0, 0}, "an attribute that is not a single value");
}

void Structure::check_layout(Bytes& m) {
  m.expect({4}, "a layout of another version");
  const uint64_t kind = m.number(1);
  require(kind == 1 || kind == 2, "a layout other than contiguous and chunked");
  if (kind == 1) {
    const uint64_t address = m.number(8), bytes = m.number(8);
    if (address != kNowhere) at(address, 0, "");
    return require(bytes <= uint64_t(file_.end), "more bytes than the file has");
  }
  const uint64_t flags = m.number(1), rank = m.number(1), width = m.number(1);
  require((flags & ~uint64_t(2)) == 0 && rank >= 2 && rank <= Shape::kMaxRank + 1 && width >= 1 && width <= 8,
          "a chunked layout of unknown form");
  for (uint64_t i = 0; i < rank; ++i) require(m.number(width) > 0, "a chunk of no size");
  const auto type = int(m.number(1));
  uint64_t filtered = 0;
  if (type == 1) {
    filtered = flags ? m.number(8) : 0;
    m.number(flags ? 4 : 0);
  } else if (type == 3) {
    m.expect({10}, "an index of chunks with other parameters");
  } else {
    require(type == 4, "an unknown index of chunks");
    m.expect({32, 4, 4, 16, 10}, "an index of chunks with other parameters");
  }
  check_chunk_index(type, m.number(8), filtered);
}

/// A single chunk, a fixed array or an extensible array.
void Structure::check_chunk_index(int type, uint64_t address, uint64_t filtered) {
  if (address == kNowhere) return;
  const auto file_bytes = uint64_t(file_.end);
  if (type == 1) {
    at(address, 0, "");
    return require(filtered <= file_bytes, "a chunk larger than the file");
  }
  Bytes head = type == 3 ? at(address, 20, "FAHD") : at(address, 64, "EAHD");
  head.expect({0}, "an index of chunks of another version");
  require(head.number(1) <= 1, "an index of something else than chunks");
  const uint64_t entry = head.number(1);
  require(entry >= 8 && entry <= 20, "an index of chunks with other parameters");
  if (type == 3) {
    head.expect({10}, "an index of chunks with other parameters");
    require(head.number(8) <= file_bytes / entry, "more chunks than the file has room for");
  } else {
    head.expect({32, 4, 16, 4, 10}, "an index of chunks with other parameters");
    for (int i = 0; i < 6; ++i)
      require(head.number(8) <= (i == 4 ? file_bytes / entry : file_bytes), "more chunks than the file has room for");
  }
  const uint64_t first = head.number(8);
  if (first != kNowhere) at(first, 4, type == 3 ? "FADB" : "EAIB");
}

/// fletcher32, with shuffle and deflate before it or not.
void Structure::check_filters(Bytes& m) {
  m.expect({2}, "filters of another version");
  const uint64_t count = m.number(1);
  require(is_one_of(count, 1, 3), "filters other than fletcher32, shuffle and deflate");
  constexpr struct { uint64_t id, parameters; } kFilters[] = {{2, 1}, {1, 1}, {3, 0}};
  for (const auto& filter : std::span(kFilters).last(count)) {
    require(m.number(2) == filter.id, "filters other than shuffle, deflate, fletcher32");
    require((m.number(2) & ~uint64_t(1)) == 0 && m.number(2) == filter.parameters, "a filter with other parameters");
    m.part(4 * filter.parameters);
  }
}

/// Links or attributes that do not fit the object header: a heap that holds them and a tree of their names.
void Structure::check_dense(Bytes& m) {
  m.expect({0}, "links or attributes of another version");
  require(m.number(1) == 0, "links or attributes in order of creation");
  const uint64_t heap = m.number(8), tree = m.number(8);
  require((heap == kNowhere) == (tree == kNowhere), "a heap without a tree");
  if (heap == kNowhere) return;
  check_heap(heap);
  check_tree(tree);
}

void Structure::check_heap(uint64_t address) {
  Bytes head = at(address, 138, "FRHP");
  const auto file_bytes = uint64_t(file_.end);
  head.expect({0}, "a heap of another version");
  const uint64_t id = head.number(2);
  require(is_one_of(id, 7, 8) && head.number(2) == 0, "a heap with other parameters");
  require((head.number(1) & ~uint64_t(3)) == 0 && head.number(4) == 4096, "a heap with other parameters");
  require(head.number(8) <= file_bytes, "a heap with more objects than the file has room for");
  const uint64_t large = head.number(8);
  if (large != kNowhere) check_tree(large);
  head.number(8), head.number(8);  // free space, which only writers look at
  // Of managed space, allocated, the iterator's place, and of managed, huge and tiny objects size and number.
  const uint64_t span = uint64_t(1) << 40;
  for (int i = 0; i < 8; ++i) require(head.number(8) <= (i < 3 ? span : file_bytes), "a heap larger than the file");
  require(head.number(2) == 4 && is_one_of(head.number(8), 512, 1024) && head.number(8) == 65536,
          "a heap with other parameters");
  const uint64_t bits = head.number(2);
  require(is_one_of(bits, 32, 40) && head.number(2) == 1, "a heap with other parameters");
  const uint64_t root = head.number(8), rows = head.number(2);
  require(rows <= bits, "a heap with too many rows");
  if (root != kNowhere) at(root, 4, rows ? "FHIB" : "FHDB");
}

void Structure::check_tree(uint64_t address) {
  Bytes head = at(address, 34, "BTHD");
  head.expect({0}, "a tree of another version");
  head.number(1);
  const uint64_t node = head.number(4), record = head.number(2), depth = head.number(2);
  require(node == 512 && record >= 8 && record <= 32 && depth <= 8, "a tree with other parameters");
  head.expect({100, 40}, "a tree with other parameters");
  const uint64_t root = head.number(8), records = head.number(2);
  require(records <= node / record && head.number(8) <= uint64_t(file_.end), "a tree larger than the file");
  if (root != kNowhere) at(root, 4, depth ? "BTIN" : "BTLF");
}

}  // namespace mmfree::h5
