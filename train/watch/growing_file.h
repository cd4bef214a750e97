#pragma once
#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "core/system/files.h"

namespace mmfree {

/// Reads a file of lines that may grow, be cut back or be replaced while it is read.
class GrowingFile {
 public:
  /// Longer lines are passed over.
  static constexpr size_t kMostLine = size_t(16) << 20;

  explicit GrowingFile(std::string path) : path_(std::move(path)) {}
  const std::string& path() const { return path_; }
  /// Calls line(text) for each whole line that is new since the last call. If the file is another one now or shorter,
  /// calls anew() and begins at its start. Does nothing if there is no file. @throws DataError if it is no regular
  /// file, IoError, MissingError if it may not be read
  void read(
      const std::function<void(std::string_view)>& line, const std::function<void()>& anew = [] {});
  /// Lines that were too long so far.
  int64_t passed_over() const { return passed_over_; }

 private:
  void reopen(const std::function<void()>& anew);
  std::string path_;
  Fd file_;
  dev_t device_ = 0;
  ino_t number_ = 0;
  int64_t offset_ = 0;         ///< bytes read
  std::string unfinished_;     ///< what was read of a line without an end
  bool passing_over_ = false;  ///< the line at hand is too long
  int64_t passed_over_ = 0;
};

}  // namespace mmfree
