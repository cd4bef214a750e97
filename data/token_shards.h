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
///   mask             u8 [n], optional: 1 if the token of this place is scored as a target, 0 if not; without it all
///   are
/// and attributes vocab_size, tokenizer_hash, bos_id, eos_id, dummy_prefix, split, source. Atomic, as h5::Writer.
class ShardWriter {
 public:
  /// `source` says where the text comes from; `masked` whether the shard has a mask.
  ShardWriter(const std::string& path, const ShardInfo& info, const std::string& source, bool masked = false);
  /// Appends the tokens of one document and their mask, 0 or 1 each; an empty mask scores all.
  /// @throws ShapeError if the mask is of another length, Error for one in a shard without
  void add(const std::vector<int32_t>& document, const std::vector<uint8_t>& mask = {});
  int64_t tokens() const { return tokens_; }
  void commit();

 private:
  h5::Writer writer_;
  bool masked_;
  int64_t tokens_ = 0;
};

/// The tokens of several shards as one sequence. A few shards are open at a time, those used last, so that memory does
/// not grow with the corpus. Not for concurrent use.
class TokenShards {
 public:
  /// `entries`: files, directories (their *.h5) or shell patterns; each is sorted by name. Damaged content is found
  /// here if everything is verified, else when it is read.
  /// @throws MissingError, DataError if a shard is damaged, its directory is marked by kPublishing, or the shards
  /// differ in tokenizer or split
  explicit TokenShards(const std::vector<std::string>& entries, h5::Verify verify = h5::Verify::header);

  int64_t total_tokens() const { return starts_.back(); }
  int64_t documents() const { return documents_; }
  const ShardInfo& info() const { return info_; }
  int vocab_size() const { return info_.vocab_size; }
  /// Copies tokens [offset, offset + count). @throws ShapeError if they are outside the corpus, DataError naming the
  /// shard if one is not below vocab_size or the shard is damaged or another file than at the start, IoError
  void read(int64_t offset, int64_t count, int32_t* out) const;
  /// Of the tokens [offset, offset + count), which `targets` holds, replaces by kIgnoreTarget those that the mask does
  /// not score. @throws as read; DataError if the mask holds another value than 0 and 1
  void ignore_unscored(int64_t offset, int64_t count, int32_t* targets) const;
  /// 16 hex digits that change with the tokens or the order of the shards: to recognise the corpus when resuming.
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
  mutable std::list<std::pair<size_t, h5::Reader>> open_;  // by number of the shard, the one used last in front
  std::vector<int64_t> starts_{0};                         // of each shard's tokens; one more than shards
  ShardInfo info_;
  int64_t documents_ = 0;
};

}  // namespace mmfree
