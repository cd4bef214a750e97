#include "data/text/text_reader.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "core/error.h"
#include "core/system/utf8.h"

namespace mmfree {

namespace {

enum class FileType { unknown, text, lines, elements };

FileType type_of(std::string_view path) {
  if (path == "-") return FileType::lines;
  take_compression(&path);
  return has_suffix(path, ".txt")     ? FileType::text
         : has_suffix(path, ".jsonl") ? FileType::lines
         : has_suffix(path, ".json")  ? FileType::elements
                                      : FileType::unknown;
}

std::string shown(const std::string& path) { return path == "-" ? "standard input" : path; }

/// Whether a document holds nothing to be scored.
bool is_empty(const Document& d) {
  if (const auto* text = std::get_if<std::string>(&d.content)) return text->empty();
  if (const auto* pair = std::get_if<PromptedText>(&d.content)) return pair->completion.empty();
  return false;  // rows without ids are malformed
}

}  // namespace

std::string skipped_text(const SkippedRows& skipped) {
  int64_t rows = 0;
  std::string causes;
  for (const auto& [cause, count] : skipped) {
    rows += count;
    causes += concat(causes.empty() ? "" : ", ", count, ": ", cause);
  }
  return rows ? concat(rows, rows == 1 ? " malformed row (" : " malformed rows (", causes, ")") : "";
}

const std::vector<std::string>& TextReader::suffixes() {
  static const std::vector<std::string> all = {".txt",      ".jsonl",  ".json",     ".txt.zst", ".jsonl.zst",
                                               ".json.zst", ".txt.gz", ".jsonl.gz", ".json.gz"};
  return all;
}

TextReader::TextReader(const std::vector<std::string>& entries, TextOptions options)
    : found_(entries, suffixes()), options_(std::move(options)), parser_(options_) {
  MMFREE_CHECK(UsageError, !options_.strict || !options_.skip_malformed,
               "--strict and --skip-malformed exclude each other; give one of them");
  MMFREE_CHECK(UsageError, !options_.text_field.empty(), "--text-field: expected the name of a key");
  MMFREE_CHECK(DataError, !options_.strict || passed_over().empty(), passed_over_text(passed_over()),
               "; remove them, or leave out --strict");
  for (const std::string& f : files()) {
    MMFREE_CHECK(UsageError, type_of(f) != FileType::unknown, f,
                 ": unknown text file type; expected .txt, .jsonl or .json, also with .zst or .gz");
    if (f == "-") continue;
    std::error_code error;
    const auto size = std::filesystem::file_size(f, error);
    MMFREE_CHECK(MissingError, !error, f, ": cannot open: ", error.message());
    total_bytes_ += int64_t(size);
  }
}

int64_t TextReader::bytes_read() const {
  if (const auto* lines = std::get_if<LineReader>(&rows_)) return bytes_before_ + lines->bytes_read();
  if (const auto* elements = std::get_if<ElementReader>(&rows_)) return bytes_before_ + elements->bytes_read();
  return bytes_before_;
}

bool TextReader::next(Document* document) {
  std::string row;
  for (;;) {
    while (next_row(&row))
      if (parse(row, document)) return true;
    bytes_before_ = bytes_read();
    rows_ = std::monostate();
    if (file_ == files().size()) return false;
    const std::string& path = files()[file_++];
    switch (type_of(path)) {
      case FileType::lines:
        rows_.emplace<LineReader>(path, options_.check_stop);
        break;
      case FileType::elements:
        rows_.emplace<ElementReader>(path, options_.check_stop);
        break;
      default:
        return read_whole(path, document), true;
    }
  }
}

void TextReader::read_whole(const std::string& path, Document* document) {
  ByteSource source(path, options_.check_stop);
  std::string text, block;
  while (source.next(&block)) {
    text += block;
    MMFREE_CHECK(DataError, int64_t(text.size()) <= kMaxDocumentBytes, path, ": the document has more than ",
                 kMaxDocumentBytes, " bytes; split it");
  }
  bytes_before_ += source.bytes_read();
  const size_t bad = find_invalid_utf8(text);
  MMFREE_CHECK(DataError, bad == std::string::npos, path, ": not UTF-8 at byte ", bad + 1,
               "; convert it, for example with iconv");
  MMFREE_CHECK(DataError, !options_.strict || !text.empty(), path, ": is empty; remove it, or leave out --strict");
  *document = {std::move(text), ""};
}

bool TextReader::next_row(std::string* row) {
  if (auto* lines = std::get_if<LineReader>(&rows_)) return lines->next(row);
  auto* elements = std::get_if<ElementReader>(&rows_);
  return elements && elements->next(row);
}

/// False for a blank line or a row that is skipped.
bool TextReader::parse(const std::string& row, Document* document) {
  const char* advice = "; correct it, or pass over such rows with --skip-malformed";
  try {
    const bool is_blank = row.find_first_not_of(" \t\r") == std::string::npos;
    if (is_blank && !options_.strict) return false;
    if (!is_blank) *document = parser_.parse(row);
    if (options_.strict && (is_blank || is_empty(*document))) {
      advice = "; remove it, or leave out --strict";
      throw Malformed{is_blank ? "a blank line" : "an empty document", "", 0};
    }
  } catch (const Malformed& problem) {
    MMFREE_CHECK(DataError, options_.skip_malformed, place(row, problem.byte), ": ", problem.cause, problem.detail,
                 advice);
    ++skipped_[problem.cause];
    return false;
  }
  MMFREE_CHECK(DataError, document->bytes() <= kMaxDocumentBytes, place(row, 0), ": the document has more than ",
               kMaxDocumentBytes, " bytes; split it");
  return true;
}

/// File, line and byte of a place in the row that was read last; both count from 1.
std::string TextReader::place(const std::string& row, size_t byte) const {
  const auto* elements = std::get_if<ElementReader>(&rows_);
  const std::string_view before = std::string_view(row).substr(0, byte);
  const size_t line_break = before.rfind('\n');
  int64_t line = std::count(before.begin(), before.end(), '\n'), column = int64_t(byte);
  line += elements ? elements->line() : std::get<LineReader>(rows_).line();
  if (line_break != before.npos)
    column -= int64_t(line_break);
  else
    column += elements ? elements->column() : 1;
  return concat(shown(files()[file_ - 1]), ":", line, ": byte ", column);
}

}  // namespace mmfree
