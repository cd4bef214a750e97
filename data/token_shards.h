#pragma once
#include <cstdint>
#include <list>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "data/h5/h5.h"
#include "data/text/framing.h"

namespace mmfree {

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
  Framing framing = Framing::both;   ///< of its documents

  bool operator==(const ShardInfo&) const = default;
};
/// Of documents framed by what of `framing` the tokenizer has.
ShardInfo shard_info(const Tokenizer& tokenizer, const std::string& split, Framing framing = Framing::both);

/// Names of source sets, numbered from 0 in the order in which they come.
class SetNames {
 public:
  const std::vector<std::string>& all() const { return names_; }
  /// The number of a name, which is added if it is new.
  int32_t number(const std::string& name);

 private:
  std::vector<std::string> names_;
  std::map<std::string, int32_t> numbers_;
};

/// Writes one shard, an h5 file of kind "tokens":
///   tokens           u16 [n] (u32 if vocab_size > 65536)
///   document_starts  i64 [documents], offsets into tokens
///   piece_bytes      u16 [vocab_size]
///   mask             u8 [n], optional: 1 if token i is scored as a target, 0 if not; without it all are scored
///   document_sets    u16 [documents], optional: the source set of each, an index into
///   set_names        u8, their names, each ended by a line break
/// and attributes vocab_size, tokenizer_hash, bos_id, eos_id, dummy_prefix, framing, split, source. Atomic, as
/// h5::Writer.
class ShardWriter {
 public:
  static constexpr size_t kMaxSets = 1 << 16;

  /// `source`: where the text comes from, for people. `compressed`: tokens, starts and masks by deflate.
  ShardWriter(const std::string& path, const ShardInfo& info, const std::string& source, bool compressed = false);
  /// Appends the tokens of one document, their mask, 0 or 1 each (empty: all are scored), and the name of its source
  /// set (empty: none). @throws ShapeError if the mask has another length, DataError for more than kMaxSets sets
  void add(const std::vector<int32_t>& document, const std::vector<uint8_t>& mask = {}, const std::string& set = {});
  int64_t tokens() const { return tokens_; }
  void commit();

 private:
  void add_set(const std::string& set);
  h5::Writer writer_;
  bool compressed_, masked_ = false;
  SetNames sets_;  // none: no document names one
  int64_t tokens_ = 0, documents_ = 0;
};

/// Part of a document among the tokens from some offset on.
struct DocumentPart {
  int64_t begin = 0;  ///< where the document begins, relative to that offset; negative if before it
  int32_t set = 0;    ///< its source set
  bool operator==(const DocumentPart&) const = default;
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
  /// The documents that tokens [offset, offset + count) belong to, in order. @throws as read; DataError if the starts
  /// of documents do not ascend
  std::vector<DocumentPart> documents(int64_t offset, int64_t count) const;
  /// Names of source sets, which DocumentPart::set counts; "" for documents that name none.
  const std::vector<std::string>& sets() const { return sets_.all(); }
  /// 16 hex digits that depend on the content and the order of the shards: a resumed run recognises its corpus by them.
  std::string fingerprint() const;

 private:
  struct Shard {
    std::string path, hash;
    bool masked;
    std::vector<int32_t> sets;  ///< numbers in sets() of the shard's own sets; empty: it has none
  };
  std::vector<int32_t> read_sets(const h5::Reader& shard);
  void add(const std::string& path, h5::Verify verify);
  const h5::Reader& opened(size_t shard) const;
  template <class Read>
  void for_each_part(int64_t offset, int64_t count, const Read& read) const;

  std::vector<Shard> shards_;
  std::vector<std::string> without_sums_;
  mutable std::list<std::pair<size_t, h5::Reader>> open_;  // shard number and reader, the one used last in front
  std::vector<int64_t> starts_{0};                         // first token of each shard, then the number of all tokens
  ShardInfo info_;
  SetNames sets_;
  int64_t documents_ = 0;
};

}  // namespace mmfree
