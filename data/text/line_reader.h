#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "data/text/byte_source.h"

namespace mmfree {

/// Reads a file line by line, decompressed as ByteSource does. Memory is bounded by the longest line and the window,
/// whatever the file's size.
class LineReader {
 public:
  static constexpr int64_t kMaxLineBytes = int64_t(128) << 20;

  /// `check_stop`: as for ByteSource. @throws MissingError, IoError
  explicit LineReader(const std::string& path, std::function<void()> check_stop = nullptr)
      : source_(path, std::move(check_stop)) {}

  /// Stores the next line without its '\n'; false at the end of the file.
  /// @throws DataError for a line of more than kMaxLineBytes, and what ByteSource::next throws
  bool next(std::string* line);

  /// The number of the last line, from 1.
  int64_t line() const { return line_; }
  /// Bytes of the file, as stored, that were read so far.
  int64_t bytes_read() const { return source_.bytes_read(); }

 private:
  ByteSource source_;
  std::string block_;
  size_t at_ = 0;
  int64_t line_ = 0;
};

}  // namespace mmfree
