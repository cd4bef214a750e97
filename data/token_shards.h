#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/h5/h5.h"

namespace mmfree {

class Tokenizer;

/// A folder of this name in a directory of shards: `prepare` was killed while it put them in place, so that some are
/// missing or old.
inline constexpr const char* kPublishing = ".publishing";

/// What all shards of a corpus share; stored in each.
struct ShardInfo {
  std::string split;  ///< "train" or "valid"
  int vocab_size = 0;
  std::string tokenizer_hash;
  int bos_id = -1, eos_id = -1;      ///< -1 if the tokenizer has none
  bool dummy_prefix = false;         ///< see Tokenizer::adds_dummy_prefix
  std::vector<int32_t> piece_bytes;  ///< [vocab_size], see Tokenizer::byte_length

  bool operator==(const ShardInfo&) const = default;
};
ShardInfo shard_info(const Tokenizer& tokenizer, const std::string& split);

/// Writes one shard, an h5 file of kind "tokens":
///   tokens           u16 [n] (u32 if vocab_size > 65536)
///   document_starts  i64 [documents], offsets into tokens
///   piece_bytes      u16 [vocab_size]
/// and attributes vocab_size, tokenizer_hash, bos_id, eos_id, dummy_prefix, split, source. Atomic, as h5::Writer.
class ShardWriter {
 public:
  /// `source` says where the text comes from.
  ShardWriter(const std::string& path, const ShardInfo& info, const std::string& source);
  /// Appends the tokens of one document.
  void add(const std::vector<int32_t>& document);
  int64_t tokens() const { return tokens_; }
  void commit();

 private:
  h5::Writer writer_;
  int64_t tokens_ = 0;
};

/// The tokens of several shards as one sequence. Not for concurrent use.
class TokenShards {
 public:
  /// `entries`: files, directories (their *.h5) or shell patterns; each is sorted by name.
  /// @throws MissingError, DataError if a shard is damaged, its directory is marked by kPublishing, or the shards
  /// differ in tokenizer or split
  explicit TokenShards(const std::vector<std::string>& entries);

  int64_t total_tokens() const { return starts_.back(); }
  int64_t documents() const { return documents_; }
  const ShardInfo& info() const { return info_; }
  int vocab_size() const { return info_.vocab_size; }
  /// Copies tokens [offset, offset + count). @throws ShapeError if they are outside the corpus, DataError naming the
  /// shard if one is not below vocab_size, IoError
  void read(int64_t offset, int64_t count, int32_t* out) const;
  /// 16 hex digits that change with the tokens or the order of the shards: to recognise the corpus when resuming.
  std::string fingerprint() const;

 private:
  void open(const std::string& path);

  std::vector<h5::Reader> shards_;
  std::vector<int64_t> starts_{0};  // of each shard's tokens; one more than shards
  ShardInfo info_;
  int64_t documents_ = 0;
};

}  // namespace mmfree
