#include "data/text/decoder.h"

#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include <new>

#include "core/error.h"

namespace mmfree {

namespace {

class ZstdDecoder : public Decoder {
 public:
  explicit ZstdDecoder(std::string name) : name_(std::move(name)), stream_(ZSTD_createDStream(), ZSTD_freeDStream) {
    if (!stream_) throw std::bad_alloc();
    // The decoder allocates the window that a frame's header names, so a larger limit costs other files nothing.
    ZSTD_DCtx_setParameter(stream_.get(), ZSTD_d_windowLogMax, 31);
  }

  size_t decode(std::string_view* in, char* out, size_t room) override {
    ZSTD_inBuffer input{in->data(), in->size(), 0};
    ZSTD_outBuffer output{out, room, 0};
    const size_t state = ZSTD_decompressStream(stream_.get(), &output, &input);
    MMFREE_CHECK(OutOfMemory, ZSTD_getErrorCode(state) != ZSTD_error_memory_allocation, name_,
                 ": not enough memory for its zstd window; compress it again with a smaller --long");
    MMFREE_CHECK(DataError, !ZSTD_isError(state), name_, ": damaged zstd data: ", ZSTD_getErrorName(state));
    // A call without input and output returns the size of the next frame's header, not the state of this frame.
    if (input.pos > 0 || output.pos > 0) between_frames_ = state == 0;
    in->remove_prefix(input.pos);
    return output.pos;
  }
  bool between_frames() const override { return between_frames_; }

 private:
  std::string name_;
  std::unique_ptr<ZSTD_DStream, size_t (*)(ZSTD_DStream*)> stream_;
  bool between_frames_ = true;
};

class GzipDecoder : public Decoder {
 public:
  explicit GzipDecoder(std::string name) : name_(std::move(name)) {
    constexpr int kGzipOnly = 16;
    if (::inflateInit2(&stream_, MAX_WBITS + kGzipOnly) != Z_OK) throw std::bad_alloc();
  }
  ~GzipDecoder() override { ::inflateEnd(&stream_); }

  size_t decode(std::string_view* in, char* out, size_t room) override {
    if (between_frames_ && !in->empty()) ::inflateReset(&stream_);
    stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(in->data()));
    stream_.avail_in = uInt(in->size());
    stream_.next_out = reinterpret_cast<Bytef*>(out);
    stream_.avail_out = uInt(room);
    const int state = ::inflate(&stream_, Z_NO_FLUSH);
    if (state == Z_MEM_ERROR) throw std::bad_alloc();
    MMFREE_CHECK(DataError, state == Z_OK || state == Z_STREAM_END || state == Z_BUF_ERROR, name_,
                 ": damaged gzip data: ", stream_.msg ? stream_.msg : "inflate fails");
    const size_t read = in->size() - stream_.avail_in, written = room - stream_.avail_out;
    if (read > 0 || written > 0) between_frames_ = state == Z_STREAM_END;
    in->remove_prefix(read);
    return written;
  }
  bool between_frames() const override { return between_frames_; }

 private:
  std::string name_;
  z_stream stream_{};
  bool between_frames_ = true;
};

}  // namespace

std::unique_ptr<Decoder> make_decoder(Compression compression, const std::string& name) {
  switch (compression) {
    case Compression::none:
      return nullptr;
    case Compression::zstd:
      return std::make_unique<ZstdDecoder>(name);
    case Compression::gzip:
      return std::make_unique<GzipDecoder>(name);
  }
  return nullptr;
}

}  // namespace mmfree
