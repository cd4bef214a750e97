#pragma once
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace mmfree {

enum class Compression { none, zstd, gzip };

/// Decompresses a stream piece by piece. Frames of zstd and members of gzip may follow one another.
class Decoder {
 public:
  virtual ~Decoder() = default;
  /// Writes at most `room` bytes to `out` and takes the bytes that it has read off the front of *in. Returns how many
  /// it wrote; if that is `room`, there may be more, even without further input.
  /// @throws DataError if the stream is damaged, OutOfMemory if there is none for the window
  virtual size_t decode(std::string_view* in, char* out, size_t room) = 0;
  /// False inside a frame: a stream that ends here is truncated.
  virtual bool between_frames() const = 0;
};

/// Null for Compression::none. `name` stands for the stream in errors.
std::unique_ptr<Decoder> make_decoder(Compression compression, const std::string& name);

}  // namespace mmfree
