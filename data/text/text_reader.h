#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/text/line_reader.h"

namespace mmfree {

/// Streams the documents of text files, in the order of the files:
///   .txt        the whole file is one document
///   .jsonl      one JSON object a line; its "text" string is the document, other keys are ignored
///   .jsonl.zst  the same, zstd-compressed (windows up to 128 MiB)
/// A document has at most 64 MiB and is valid UTF-8; memory use is bounded by that, whatever the files' sizes.
class TextReader {
 public:
  static constexpr int64_t kMaxDocumentBytes = int64_t(64) << 20;

  /// `entries`: files, directories or shell patterns. With `skip_malformed`, lines that are not JSON objects with a
  /// "text" string are counted instead of being a DataError. @throws MissingError, UsageError for another file type
  explicit TextReader(const std::vector<std::string>& entries, bool skip_malformed = false);

  /// Stores the next document in *text; false at the end.
  /// @throws DataError naming file and line (malformed, too long, damaged compression), IoError
  bool next(std::string* text);

  /// Malformed lines skipped so far.
  int64_t skipped_lines() const { return skipped_; }
  /// Bytes of the files (as stored, compressed or not) read so far, and their sum: for progress.
  int64_t bytes_read() const;
  int64_t total_bytes() const { return total_bytes_; }
  const std::vector<std::string>& files() const { return files_; }

 private:
  bool parse(const std::string& line, std::string* text);

  std::vector<std::string> files_;
  bool skip_malformed_;
  size_t file_ = 0;  // the next one to open
  std::unique_ptr<LineReader> lines_;
  int64_t line_number_ = 0, skipped_ = 0, bytes_before_ = 0, total_bytes_ = 0;
};

}  // namespace mmfree
