#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "core/system/files.h"
#include "data/text/decoder.h"

namespace mmfree {

/// The content of a file, decompressed, in blocks. A name that ends with .zst or .gz, in capitals or not, says how the
/// file is compressed. "-" is standard input: its first bytes say how it is compressed. Memory is bounded by the window
/// of the compression: up to 2 GiB for zstd, if the file asks for it.
class ByteSource {
 public:
  /// `check_stop` is called before each block, and now and then while standard input keeps it waiting: what it throws
  /// ends the reading. @throws MissingError, IoError
  explicit ByteSource(const std::string& path, std::function<void()> check_stop = nullptr);

  /// Stores the next block, which is not empty; false, and an empty one, at the end of the file. Does not wait for a
  /// whole block: who writes to standard input may send line by line.
  /// @throws DataError (damaged, truncated or hostile compression), OutOfMemory, IoError
  bool next(std::string* block);

  /// The path, or "standard input".
  const std::string& name() const { return name_; }
  /// Bytes of the file, as stored, that were read so far.
  int64_t bytes_read() const { return bytes_in_; }

 private:
  void wait() const;
  size_t read(char* to, size_t room);
  bool refill();

  std::string name_;
  std::function<void()> check_stop_;
  Fd file_;
  bool unknown_;  // the compression, before the first bytes of standard input
  std::unique_ptr<Decoder> decoder_;
  std::string stored_;     // bytes of the file that were read last
  std::string_view rest_;  // what of them is to be used
  bool full_ = false;      // the decoder may hold more output
  int64_t bytes_in_ = 0, bytes_out_ = 0;
};

/// How the file of this name is compressed; takes the suffix that says so off *path.
Compression take_compression(std::string_view* path);

}  // namespace mmfree
