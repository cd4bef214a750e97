#include "data/text/text_reader.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/system/files.h"
#include "core/system/utf8.h"
#include "data/paths.h"

namespace mmfree {

namespace {
constexpr int kMaxJsonDepth = 32;
}  // namespace

TextReader::TextReader(const std::vector<std::string>& entries, bool skip_malformed)
    : files_(expand_paths(entries, {".txt", ".jsonl", ".jsonl.zst"})), skip_malformed_(skip_malformed) {
  for (const std::string& f : files_) {
    const bool known = f.ends_with(".txt") || f.ends_with(".jsonl") || f.ends_with(".jsonl.zst");
    MMFREE_CHECK(UsageError, known, f, ": unknown text file type; expected .txt, .jsonl or .jsonl.zst");
    std::error_code error;
    const auto size = std::filesystem::file_size(f, error);
    MMFREE_CHECK(MissingError, !error, f, ": cannot open: ", error.message());
    total_bytes_ += int64_t(size);
  }
}

int64_t TextReader::bytes_read() const { return bytes_before_ + (lines_ ? lines_->bytes_read() : 0); }

bool TextReader::next(std::string* text) {
  std::string line;
  for (;;) {
    if (!lines_) {
      if (file_ == files_.size()) return false;
      const std::string& path = files_[file_++];
      if (path.ends_with(".txt")) {
        *text = read_file(path, kMaxDocumentBytes);
        bytes_before_ += int64_t(text->size());
        const size_t bad = find_invalid_utf8(*text);
        MMFREE_CHECK(DataError, bad == std::string::npos, path, ": not UTF-8 at byte ", bad,
                     "; convert it, for example with iconv");
        return true;
      }
      lines_ = std::make_unique<LineReader>(path);
      line_number_ = 0;
    }
    while (lines_->next(&line)) {
      ++line_number_;
      if (parse(line, text)) return true;
    }
    bytes_before_ += lines_->bytes_read();
    lines_.reset();
  }
}

/// False for a blank line or one that is skipped.
bool TextReader::parse(const std::string& line, std::string* text) {
  using nlohmann::json;
  if (line.find_first_not_of(" \t\r") == std::string::npos) return false;
  bool too_deep = false;
  int texts = 0;
  // The parser keeps only "text", so that other keys take no memory and no deep value is built.
  const auto keep = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > kMaxJsonDepth) too_deep = true;
    if (event == json::parse_event_t::key) {
      const bool is_text = depth == 1 && value == "text";
      texts += is_text;
      return is_text;
    }
    return !too_deep;
  };
  // The parser takes a zero byte as the end of its input and ignores what follows it.
  const bool whole = line.find('\0') == std::string::npos;
  const json object = whole ? json::parse(line, keep, /*allow_exceptions=*/false) : json();
  const auto found = object.find("text");
  const bool ok = !too_deep && texts == 1 && found != object.end() && found->is_string();
  if (ok) {
    *text = found->get<std::string>();
    MMFREE_CHECK(DataError, int64_t(text->size()) <= kMaxDocumentBytes, files_[file_ - 1], ":", line_number_,
                 ": the document has more than ", kMaxDocumentBytes, " bytes; split it");
    return true;
  }
  MMFREE_CHECK(DataError, skip_malformed_, files_[file_ - 1], ":", line_number_,
               ": not a JSON object with a \"text\" string; correct the line, or skip such lines");
  ++skipped_;
  return false;
}

}  // namespace mmfree
