#pragma once
#include <cstdint>
#include <list>
#include <string>
#include <utility>
#include <vector>

#include "data/h5/h5.h"

namespace mmfree {

class Tokenizer;

/// A folder of this name in a directory of shards means that `prepare` was killed while it replaced them: some are
/// missing or old.
inline constexpr const char* kPublishing = ".publishing";

/// Properties that all shards of a corpus have in common; stored in each.
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
///   mask             u8 [n], optional: 1 if token i is scored as a target, 0 if not; without it all are scored
/// and attributes vocab_size, tokenizer_hash, bos_id, eos_id, dummy_prefix, split, source. Atomic, as h5::Writer.
class ShardWriter {
 public:
  /// `source`: where the text comes from, for people. `masked`: the shard has a mask.
  ShardWriter(const std::string& path, const ShardInfo& info, const std::string& source, bool masked = false);
  /// Appends the tokens of one document and their mask, 0 or 1 each; with an empty mask all are scored.
  /// @throws ShapeError if the mask has another length, Error if the shard has no mask
  void add(const std::vector<int32_t>& document, const std::vector<uint8_t>& mask = {});
  int64_t tokens() const { return tokens_; }
  void commit();

 private:
  h5::Writer writer_;
  bool masked_;
  int64_t tokens_ = 0;
};

/// The tokens of several shards as one sequence. Only the shards used last are open, so memory does not grow with the
/// corpus. Not for concurrent use.
class TokenShards {
 public:
  /// `entries`: files, directories (their *.h5) or shell patterns, see expand_paths. With h5::Verify::everything
  /// damaged content is found here, otherwise when it is read.
  /// @throws MissingError, DataError if a shard is damaged, its directory is marked by kPublishing, or the shards
  /// differ in tokenizer or split
  explicit TokenShards(const std::vector<std::string>& entries, h5::Verify verify = h5::Verify::header);

  int64_t total_tokens() const { return starts_.back(); }
  int64_t documents() const { return documents_; }
  /// The paths of the shards whose chunks have no sums: zeros in place of a chunk pass for tokens.
  const std::vector<std::string>& without_sums() const { return without_sums_; }
  const ShardInfo& info() const { return info_; }
  int vocab_size() const { return info_.vocab_size; }
  /// Copies tokens [offset, offset + count). @throws ShapeError if they are outside the corpus; DataError naming the
  /// shard if a token is not below vocab_size, or the shard is damaged or was replaced since the start; IoError
  void read(int64_t offset, int64_t count, int32_t* out) const;
  /// `targets` holds the tokens [offset, offset + count). Replaces those that the mask does not score by kIgnoreTarget.
  /// @throws as read; DataError if the mask holds a value other than 0 and 1
  void ignore_unscored(int64_t offset, int64_t count, int32_t* targets) const;
  /// 16 hex digits that depend on the content and the order of the shards: a resumed run recognises its corpus by them.
  std::string fingerprint() const;

 private:
  struct Shard {
    std::string path, hash;
    bool masked;
  };
  void add(const std::string& path, h5::Verify verify);
  const h5::Reader& opened(size_t shard) const;
  template <class Read>
  void for_each_part(int64_t offset, int64_t count, const Read& read) const;

  std::vector<Shard> shards_;
  std::vector<std::string> without_sums_;
  mutable std::list<std::pair<size_t, h5::Reader>> open_;  // shard number and reader, the one used last in front
  std::vector<int64_t> starts_{0};                         // first token of each shard, then the number of all tokens
  ShardInfo info_;
  int64_t documents_ = 0;
};

}  // namespace mmfree
