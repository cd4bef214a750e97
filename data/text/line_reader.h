#pragma once
#include <cstdint>
#include <memory>
#include <string>

namespace mmfree {

/// Reads a file line by line; one whose name ends with .zst is decompressed (windows up to 128 MiB). "-" is standard
/// input. Memory use is bounded by the longest line and the window, whatever the file's size.
class LineReader {
 public:
  static constexpr int64_t kMaxLineBytes = int64_t(128) << 20;

  /// @throws MissingError
  explicit LineReader(const std::string& path);
  ~LineReader();
  LineReader(const LineReader&) = delete;

  /// Stores the next line without its '\n'; false at the end of the file.
  /// @throws DataError (a line of more than kMaxLineBytes, damaged or hostile compression), IoError
  bool next(std::string* line);

  /// Bytes of the file, as stored, that were read so far.
  int64_t bytes_read() const;

 private:
  class Blocks;
  std::unique_ptr<Blocks> blocks_;
  std::string block_;
  size_t at_ = 0;
};

}  // namespace mmfree
