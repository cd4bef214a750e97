#include "data/text_reader.h"

#include <zstd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/files.h"
#include "core/utf8.h"
#include "data/paths.h"

namespace mmfree {

namespace {
constexpr int kMaxJsonDepth = 32;
/// A line also carries keys and escapes (up to 6 bytes for one of text).
constexpr size_t kMaxLineBytes = size_t(TextReader::kMaxDocumentBytes) * 2;
/// Far above what text compresses to; stops files made to expand without end.
constexpr int64_t kMaxRatio = 4096;
}  // namespace

/// Lines of a plain or zstd-compressed file.
class TextReader::Lines {
 public:
  explicit Lines(const std::string& path)
      : path_(path), file_(std::fopen(path.c_str(), "rb"), std::fclose), decoder_(nullptr, ZSTD_freeDStream) {
    MMFREE_CHECK(MissingError, file_, path, ": cannot open: ", std::strerror(errno));
    if (path.ends_with(".zst")) {
      decoder_.reset(ZSTD_createDStream());
      if (!decoder_) throw std::bad_alloc();
      ZSTD_DCtx_setParameter(decoder_.get(), ZSTD_d_windowLogMax, 27);
    }
  }

  /// Stores the next line without its '\n'; false at the end of the file.
  bool next(std::string* line) {
    line->clear();
    for (bool any = false;; any = true) {
      if (at_ == text_.size() && !fill()) return any;
      const char* begin = text_.data() + at_;
      const size_t left = text_.size() - at_;
      const auto* end = static_cast<const char*>(std::memchr(begin, '\n', left));
      const size_t n = end ? size_t(end - begin) : left;
      MMFREE_CHECK(DataError, line->size() + n <= kMaxLineBytes, path_, ": a line is longer than ", kMaxLineBytes,
                   " bytes; split the document");
      line->append(begin, n);
      at_ += n + (end ? 1 : 0);
      if (end) return true;
    }
  }

  int64_t bytes_read() const { return bytes_in_; }

 private:
  static constexpr size_t kBlock = 1 << 17;

  size_t read(std::string* block) {
    block->resize(kBlock);
    block->resize(std::fread(block->data(), 1, kBlock, file_.get()));
    MMFREE_CHECK(IoError, !std::ferror(file_.get()), path_, ": read failed: ", std::strerror(errno));
    bytes_in_ += int64_t(block->size());
    return block->size();
  }

  bool fill() {
    at_ = 0;
    if (!decoder_) return read(&text_) > 0;
    do {
      // Output may still wait inside the decoder after all input went in: ask with what is left before reading on.
      if (input_.pos == input_.size && !output_full_) {
        const size_t n = read(&compressed_);
        input_ = {compressed_.data(), n, 0};
        if (input_.size == 0) {
          MMFREE_CHECK(DataError, frame_complete_, path_, ": the compressed file is truncated; get it again");
          text_.clear();
          return false;
        }
      }
      text_.resize(kBlock);
      ZSTD_outBuffer output{text_.data(), kBlock, 0};
      const size_t state = ZSTD_decompressStream(decoder_.get(), &output, &input_);
      MMFREE_CHECK(DataError, !ZSTD_isError(state), path_, ": damaged zstd data: ", ZSTD_getErrorName(state));
      frame_complete_ = state == 0;
      output_full_ = output.pos == output.size;
      text_.resize(output.pos);
      bytes_out_ += int64_t(output.pos);
      MMFREE_CHECK(DataError, bytes_out_ <= kMaxDocumentBytes + kMaxRatio * bytes_in_, path_, ": expands more than ",
                   kMaxRatio, "-fold: refused as hostile");
    } while (text_.empty());
    return true;
  }

  std::string path_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
  std::unique_ptr<ZSTD_DStream, size_t (*)(ZSTD_DStream*)> decoder_;
  std::string text_, compressed_;
  size_t at_ = 0;
  ZSTD_inBuffer input_{nullptr, 0, 0};
  bool frame_complete_ = true, output_full_ = false;
  int64_t bytes_in_ = 0, bytes_out_ = 0;
};

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

TextReader::~TextReader() = default;

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
      lines_ = std::make_unique<Lines>(path);
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
  // Only "text" is kept, so that other keys cost no memory and no deep value is ever built.
  const auto keep = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > kMaxJsonDepth) too_deep = true;
    if (event == json::parse_event_t::key) {
      const bool is_text = depth == 1 && value == "text";
      texts += is_text;
      return is_text;
    }
    return !too_deep;
  };
  // The parser takes a zero byte for the end of its input and would accept anything behind it.
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
               ": not a JSON object with a \"text\" string; mend the line, or skip such lines");
  ++skipped_;
  return false;
}

}  // namespace mmfree
