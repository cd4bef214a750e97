#include "data/token_shards.h"

#include <algorithm>
#include <filesystem>
#include <limits>

#include "core/error.h"
#include "core/ops/head_loss.h"
#include "core/system/hash.h"
#include "data/paths.h"
#include "data/text/tokenizer.h"

namespace mmfree {

namespace {
/// An open shard takes up to a megabyte of memory; to open one takes half a millisecond.
constexpr size_t kMaxOpen = 64;
constexpr const char* kFraming = "framing";
constexpr size_t kMaxSetName = 250;  // bytes
constexpr int64_t kMaxSetNames = int64_t(ShardWriter::kMaxSets * (kMaxSetName + 1));
}  // namespace

int32_t SetNames::number(const std::string& name) {
  const auto [at, is_new] = numbers_.emplace(name, int32_t(names_.size()));
  if (is_new) names_.push_back(name);
  return at->second;
}

ShardInfo shard_info(const Tokenizer& tokenizer, const std::string& split, Framing framing) {
  ShardInfo info{split,
                 tokenizer.vocab_size(),
                 tokenizer.hash(),
                 tokenizer.bos_id(),
                 tokenizer.eos_id(),
                 tokenizer.adds_dummy_prefix(),
                 {},
                 DocumentEncoder(tokenizer, framing).framing()};
  for (int id = 0; id < info.vocab_size; ++id) info.piece_bytes.push_back(tokenizer.byte_length(id));
  return info;
}

ShardWriter::ShardWriter(const std::string& path, const ShardInfo& info, const std::string& source, bool compressed)
    : writer_(path, "tokens"), compressed_(compressed) {
  writer_.attribute("vocab_size", int64_t(info.vocab_size));
  writer_.attribute("tokenizer_hash", info.tokenizer_hash);
  writer_.attribute("bos_id", int64_t(info.bos_id));
  writer_.attribute("eos_id", int64_t(info.eos_id));
  writer_.attribute("dummy_prefix", int64_t(info.dummy_prefix));
  writer_.attribute(kFraming, name_of(info.framing));
  writer_.attribute("split", info.split);
  writer_.attribute("source", source);
  writer_.create_series("tokens", info.vocab_size <= 65536 ? h5::SeriesType::u16 : h5::SeriesType::u32, compressed_);
  writer_.create_series("document_starts", h5::SeriesType::i64, compressed_);
  writer_.create_series("piece_bytes", h5::SeriesType::u16);
  writer_.append("piece_bytes", info.piece_bytes.data(), int64_t(info.piece_bytes.size()));
}

namespace {

/// Appends `count` times the same value.
void append_fill(h5::Writer& writer, const char* name, uint8_t value, int64_t count) {
  const std::vector<uint8_t> block(size_t(std::min<int64_t>(count, 1 << 16)), value);
  for (; count > 0; count -= int64_t(block.size()))
    writer.append(name, block.data(), std::min(count, int64_t(block.size())));
}

}  // namespace

void ShardWriter::add_set(const std::string& set) {
  if (set.empty() && sets_.all().empty()) return;
  if (sets_.all().empty()) {
    writer_.create_series("document_sets", h5::SeriesType::u16, compressed_);
    if (documents_) sets_.number("");
    append_fill(writer_, "document_sets", 0, documents_);
  }
  MMFREE_CHECK(DataError, set.find('\n') == std::string::npos, "shard: the source set ", quote(set),
               " has a line break in its name");
  const int32_t number = sets_.number(set);
  MMFREE_CHECK(DataError, size_t(number) < kMaxSets && set.size() <= kMaxSetName, "shard: source set ", quote(set),
               ": expected at most ", kMaxSets, " sets with names of at most ", kMaxSetName, " bytes");
  writer_.append("document_sets", &number, 1);
}

void ShardWriter::add(const std::vector<int32_t>& document, const std::vector<uint8_t>& mask, const std::string& set) {
  MMFREE_CHECK(ShapeError, mask.empty() || mask.size() == document.size(), "shard: a mask of ", mask.size(),
               " for a document of ", document.size(), " tokens");
  if (!mask.empty() && !masked_) {
    writer_.create_series("mask", h5::SeriesType::u8, compressed_);
    append_fill(writer_, "mask", 1, tokens_);
    masked_ = true;
  }
  if (mask.empty() && masked_) append_fill(writer_, "mask", 1, int64_t(document.size()));
  if (!mask.empty()) writer_.append("mask", mask.data(), int64_t(mask.size()));
  add_set(set);
  writer_.append("document_starts", &tokens_, 1);
  writer_.append("tokens", document.data(), int64_t(document.size()));
  tokens_ += int64_t(document.size());
  ++documents_;
}

void ShardWriter::commit() {
  if (!sets_.all().empty()) {
    std::string names;
    for (const std::string& set : sets_.all()) names += set + '\n';
    writer_.create_series("set_names", h5::SeriesType::u8);
    writer_.append("set_names", reinterpret_cast<const uint8_t*>(names.data()), int64_t(names.size()));
  }
  writer_.commit();
}

namespace {

int small_int(const h5::Reader& shard, const std::string& attribute, int64_t min, int64_t max) {
  const int64_t value = shard.attribute_int(attribute);
  MMFREE_CHECK(DataError, value >= min && value <= max, shard.path(), ": attribute ", attribute, " is ", value,
               ", expected ", min, " to ", max);
  return int(value);
}

int64_t length_of(const h5::Reader& shard, const std::string& name) {
  const Shape shape = shard.shape(name);
  MMFREE_CHECK(DataError, shape.rank() == 1, shard.path(), ": dataset ", name, " has shape ", shape,
               ", expected one dimension");
  return shape[0];
}

int64_t int_at(const h5::Reader& shard, const std::string& name, int64_t row) {
  int64_t value = 0;
  shard.read(name, row, 1, DType::i64, &value);
  return value;
}

/// How the documents of a shard are framed. One that does not say shows it by its first document.
Framing read_framing(const h5::Reader& shard, const ShardInfo& info) {
  if (shard.has_attribute(kFraming)) {
    const std::string name = shard.attribute_string(kFraming);
    for (const Framing f : kAllFramings)
      if (name == name_of(f)) return f;
    throw DataError(
        concat(shard.path(), ": attribute framing is ", quote(name), ", expected none, bos, eos or bos+eos"));
  }
  const int64_t tokens = length_of(shard, "tokens"), documents = length_of(shard, "document_starts");
  if (tokens == 0) return Framing::both;
  const int64_t end = documents > 1 ? int_at(shard, "document_starts", 1) : tokens;
  MMFREE_CHECK(DataError, end > 0 && end <= tokens, shard.path(), ": its first document ends at token ", end, " of ",
               tokens);
  return framing_of(int_at(shard, "tokens", 0) == info.bos_id, int_at(shard, "tokens", end - 1) == info.eos_id);
}

ShardInfo read_info(const h5::Reader& shard) {
  ShardInfo info;
  info.split = shard.attribute_string("split");
  info.vocab_size = small_int(shard, "vocab_size", 1, 1 << 20);
  info.tokenizer_hash = shard.attribute_string("tokenizer_hash");
  info.bos_id = small_int(shard, "bos_id", -1, info.vocab_size - 1);
  info.eos_id = small_int(shard, "eos_id", -1, info.vocab_size - 1);
  info.dummy_prefix = small_int(shard, "dummy_prefix", 0, 1) != 0;
  const int64_t entries = length_of(shard, "piece_bytes");
  MMFREE_CHECK(DataError, entries == info.vocab_size, shard.path(), ": piece_bytes has ", entries,
               " entries, expected vocab_size = ", info.vocab_size);
  info.piece_bytes.resize(size_t(entries));
  shard.read("piece_bytes", 0, entries, DType::i32, info.piece_bytes.data());
  for (const int32_t bytes : info.piece_bytes)
    MMFREE_CHECK(DataError, bytes >= 0 && bytes <= Tokenizer::kMaxPieceBytes, shard.path(), ": a piece of ", bytes,
                 " bytes, expected 0 to ", Tokenizer::kMaxPieceBytes);
  info.framing = read_framing(shard, info);
  return info;
}

}  // namespace

TokenShards::TokenShards(const std::vector<std::string>& entries, h5::Verify verify) {
  sets_.number("");
  for (const std::string& path : expand_paths(entries, {".h5"})) add(path, verify);
  MMFREE_CHECK(MissingError, !shards_.empty(), "no token shards named; make some with 'mmfree prepare'");
}

void TokenShards::add(const std::string& path, h5::Verify verify) {
  const std::filesystem::path directory = std::filesystem::path(path).parent_path();
  std::error_code ignored;
  MMFREE_CHECK(
      DataError, !std::filesystem::exists(directory / kPublishing, ignored), path,
      ": 'mmfree prepare' was interrupted while it replaced the shards of this directory, so some are missing or "
      "old; run prepare again");
  h5::Reader shard(path, "tokens", verify);
  ShardInfo info = read_info(shard);
  if (shards_.empty()) info_ = info;
  const std::string first = shards_.empty() ? path : shards_[0].path;
  MMFREE_CHECK(DataError, info.tokenizer_hash == info_.tokenizer_hash, path, ": made with tokenizer ",
               quote(info.tokenizer_hash), ", but ", first, " with ", quote(info_.tokenizer_hash),
               "; prepare them alike");
  MMFREE_CHECK(DataError, info.split == info_.split, path, ": is of split ", quote(info.split), ", but ", first, " of ",
               quote(info_.split), "; name one split, for example by the pattern 'train-*.h5'");
  MMFREE_CHECK(DataError, info.framing == info_.framing, path, ": its documents are framed by ", name_of(info.framing),
               ", those of ", first, " by ", name_of(info_.framing), "; prepare them alike");
  MMFREE_CHECK(DataError, info == info_, path, ": its vocabulary differs from that of ", first);
  const int64_t tokens = length_of(shard, "tokens");
  MMFREE_CHECK(DataError, tokens <= std::numeric_limits<int64_t>::max() - total_tokens(), path, ": too many tokens");
  const bool masked = shard.has("mask");
  MMFREE_CHECK(DataError, !masked || (shard.dtype("mask") == DType::u8 && length_of(shard, "mask") == tokens), path,
               ": dataset mask is ", name_of(shard.dtype("mask")), ' ', shard.shape("mask"), ", expected u8 [", tokens,
               ']');
  starts_.push_back(total_tokens() + tokens);
  documents_ += length_of(shard, "document_starts");
  if (!shard.has_sums()) without_sums_.push_back(path);
  shards_.push_back({path, shard.hash(), masked, read_sets(shard)});
  if (open_.size() < kMaxOpen) open_.emplace_back(shards_.size() - 1, std::move(shard));
}

/// Takes the names of a shard's sets up.
std::vector<int32_t> TokenShards::read_sets(const h5::Reader& shard) {
  if (!shard.has("document_sets")) return {};
  const int64_t bytes = length_of(shard, "set_names");
  MMFREE_CHECK(DataError,
               length_of(shard, "document_sets") == length_of(shard, "document_starts") && bytes <= kMaxSetNames,
               shard.path(), ": document_sets is ", shard.shape("document_sets"), " and set_names ",
               shard.shape("set_names"), ", expected one set per document and names");
  std::string names(size_t(bytes), '\0');
  shard.read("set_names", 0, bytes, DType::u8, names.data());
  std::vector<int32_t> numbers;
  for (size_t at = 0, end; (end = names.find('\n', at)) != std::string::npos; at = end + 1)
    numbers.push_back(sets_.number(names.substr(at, end - at)));
  return numbers;
}

const h5::Reader& TokenShards::opened(size_t shard) const {
  const auto found = std::find_if(open_.begin(), open_.end(), [&](const auto& o) { return o.first == shard; });
  if (found != open_.end()) {
    open_.splice(open_.begin(), open_, found);
  } else {
    const std::string& path = shards_[shard].path;
    h5::Reader reader(path, "tokens", h5::Verify::header);
    MMFREE_CHECK(DataError, reader.hash() == shards_[shard].hash, path,
                 ": was replaced after it was first opened; start again");
    if (open_.size() == kMaxOpen) open_.pop_back();
    open_.emplace_front(shard, std::move(reader));
  }
  return open_.front().second;
}

/// Calls `read(shard, offset in it, count)` for each part of the tokens [offset, offset + count) that lies in one
/// shard.
template <class Read>
void TokenShards::for_each_part(int64_t offset, int64_t count, const Read& read) const {
  MMFREE_CHECK(ShapeError, offset >= 0 && count >= 0 && offset <= total_tokens() && count <= total_tokens() - offset,
               "token shards: tokens [", offset, ", +", count, ") of ", total_tokens());
  auto shard = size_t(std::upper_bound(starts_.begin(), starts_.end(), offset) - starts_.begin()) - 1;
  for (; count > 0; ++shard) {
    const int64_t n = std::min(count, starts_[shard + 1] - offset);
    if (n > 0) read(shard, offset - starts_[shard], n);
    offset += n, count -= n;
  }
}

void TokenShards::read(int64_t offset, int64_t count, int32_t* out) const {
  for_each_part(offset, count, [&](size_t shard, int64_t begin, int64_t n) {
    opened(shard).read("tokens", begin, n, DType::i32, out);
    for (int64_t i = 0; i < n; ++i)
      MMFREE_CHECK(DataError, out[i] >= 0 && out[i] < info_.vocab_size, shards_[shard].path, ": token ", out[i], " at ",
                   begin + i, " is not below the vocabulary size ", info_.vocab_size);
    out += n;
  });
}

void TokenShards::ignore_unscored(int64_t offset, int64_t count, int32_t* targets) const {
  std::vector<uint8_t> mask;
  for_each_part(offset, count, [&](size_t shard, int64_t begin, int64_t n) {
    if (shards_[shard].masked) {
      mask.resize(size_t(n));
      opened(shard).read("mask", begin, n, DType::u8, mask.data());
      for (int64_t i = 0; i < n; ++i) {
        MMFREE_CHECK(DataError, mask[size_t(i)] <= 1, shards_[shard].path, ": mask ", int(mask[size_t(i)]), " at ",
                     begin + i, ", expected 0 or 1");
        if (!mask[size_t(i)]) targets[i] = kIgnoreTarget;
      }
    }
    targets += n;
  });
}

namespace {

/// The number of documents of a shard that start at or before `token`.
int64_t documents_up_to(const h5::Reader& shard, int64_t token) {
  int64_t low = 0, high = length_of(shard, "document_starts");
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (int_at(shard, "document_starts", middle) <= token)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

}  // namespace

std::vector<DocumentPart> TokenShards::documents(int64_t offset, int64_t count) const {
  std::vector<DocumentPart> parts;
  int64_t done = 0;
  for_each_part(offset, count, [&](size_t shard, int64_t begin, int64_t n) {
    const h5::Reader& reader = opened(shard);
    const std::vector<int32_t>& sets = shards_[shard].sets;
    const int64_t all = length_of(reader, "document_starts");
    int64_t document = documents_up_to(reader, begin) - 1, last = -1;
    MMFREE_CHECK(DataError, document >= 0, shards_[shard].path, ": no document holds token ", begin);
    for (; document < all; ++document) {
      const int64_t start = int_at(reader, "document_starts", document);
      MMFREE_CHECK(DataError, start >= 0 && start >= last, shards_[shard].path, ": document ", document,
                   " starts at token ", start, ", after one that starts at ", last);
      if (start >= begin + n) break;
      if (start == last) parts.pop_back();  // the one before is empty
      last = start;
      const int64_t set = sets.empty() ? -1 : int_at(reader, "document_sets", document);
      MMFREE_CHECK(DataError, set < int64_t(sets.size()), shards_[shard].path, ": document ", document, " is of set ",
                   set, " of ", sets.size());
      parts.push_back({done + start - begin, set < 0 ? 0 : sets[size_t(set)]});
    }
    done += n;
  });
  return parts;
}

std::string TokenShards::fingerprint() const {
  std::string hashes;
  for (const Shard& shard : shards_) hashes += shard.hash;
  return hex16(hash64(hashes));
}

}  // namespace mmfree
