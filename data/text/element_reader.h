#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "data/text/byte_source.h"

namespace mmfree {

/// Reads the elements of a .json file one by one: those of an array, or the values that follow one another. Finds their
/// ends only; whether an element is JSON is its reader's to see. Memory is bounded by the longest element.
class ElementReader {
 public:
  static constexpr int64_t kMaxElementBytes = int64_t(128) << 20;

  /// `check_stop`: as for ByteSource. @throws MissingError, IoError
  explicit ElementReader(const std::string& path, std::function<void()> check_stop = nullptr)
      : source_(path, std::move(check_stop)) {}

  /// Stores the next element; false at the end of the file.
  /// @throws DataError (an element of more than kMaxElementBytes, what is no element, a file that ends too early), and
  /// what ByteSource::next throws
  bool next(std::string* element);

  /// Where the last element begins, both from 1.
  int64_t line() const { return line_; }
  int64_t column() const { return column_; }
  /// Bytes of the file, as stored, that were read so far.
  int64_t bytes_read() const { return source_.bytes_read(); }

 private:
  char peek();
  char peek_past_space();
  void take();
  void copy(std::string* element);
  [[noreturn]] void fail(const std::string& what) const;

  ByteSource source_;
  std::string block_;
  size_t at_ = 0;
  bool ended_ = false, in_array_ = false, first_ = true;  // first_: of an array
  int64_t line_ = 1, column_ = 1;                         // of the last element
  int64_t line_at_ = 1, column_at_ = 1;                   // of block_[at_]
};

}  // namespace mmfree
