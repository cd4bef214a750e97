#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "data/paths.h"
#include "data/text/document.h"
#include "data/text/element_reader.h"
#include "data/text/line_reader.h"
#include "data/text/row_parser.h"

namespace mmfree {

/// How many rows were passed over for each cause.
using SkippedRows = std::map<std::string, int64_t>;

/// "3 malformed rows (2: not valid UTF-8, 1: no "text")"; empty if there are none.
std::string skipped_text(const SkippedRows& skipped);

/// Streams the documents of text files, in the order of the files:
///   .txt    the whole file is one document
///   .jsonl  one JSON object a line is one document; blank lines are passed over
///   .json   one JSON object is one document: the elements of an array, or objects that follow one another
/// each also compressed, with a further .zst or .gz; capitals are the same; "-" is standard input, as .jsonl. RowParser
/// says what makes an object a document; its other keys are ignored. A document has at most 64 MiB and is valid UTF-8;
/// memory is bounded by that and the window of the compression, whatever the files' sizes.
///
/// With `strict` a file of another type in a directory, a blank line and an empty text or completion are errors too.
class TextReader {
 public:
  static constexpr int64_t kMaxDocumentBytes = int64_t(64) << 20;

  /// `entries`: files, directories with all below them, or shell patterns, see FoundFiles.
  /// @throws MissingError, UsageError for another file type or contradictory options, DataError if strict
  explicit TextReader(const std::vector<std::string>& entries, TextOptions options = {});

  /// Stores the next document; false at the end.
  /// @throws DataError naming file and line (malformed, too long, damaged compression), IoError
  bool next(Document* document);

  /// The malformed rows that were skipped so far.
  const SkippedRows& skipped() const { return skipped_; }
  /// Files in directories that are of no known type.
  const std::vector<std::string>& passed_over() const { return found_.passed_over; }
  /// Bytes of the files (as stored, compressed or not) read so far, and their sum: for progress. The sum lacks
  /// standard input.
  int64_t bytes_read() const;
  int64_t total_bytes() const { return total_bytes_; }
  const std::vector<std::string>& files() const { return found_.files; }

  /// The endings of the files that it reads.
  static const std::vector<std::string>& suffixes();

 private:
  void read_whole(const std::string& path, Document* document);
  bool next_row(std::string* row);
  bool parse(const std::string& row, Document* document);
  std::string place(const std::string& row, size_t byte) const;

  FoundFiles found_;
  TextOptions options_;
  RowParser parser_;
  size_t file_ = 0;                                               // the next one to open
  std::variant<std::monostate, LineReader, ElementReader> rows_;  // of the open file
  int64_t bytes_before_ = 0, total_bytes_ = 0;
  SkippedRows skipped_;
};

}  // namespace mmfree
