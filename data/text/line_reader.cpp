#include "data/text/line_reader.h"

#include <fcntl.h>
#include <unistd.h>
#include <zstd.h>

#include <cerrno>
#include <cstring>
#include <new>

#include "core/error.h"
#include "core/system/files.h"

namespace mmfree {

namespace {
/// Largest ratio of expansion. Text is far below it; a file made to exhaust memory is above.
constexpr int64_t kMaxRatio = 4096;
/// The ratio is not checked up to this many bytes of output.
constexpr int64_t kAnyRatioBytes = LineReader::kMaxLineBytes / 2;
constexpr size_t kBlock = 1 << 17;

Fd open(const std::string& path) {
  if (path == "-") return Fd(::fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 0));
  return Fd(retried([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC); }));
}
}  // namespace

/// The file's content, decompressed, in blocks.
class LineReader::Blocks {
 public:
  explicit Blocks(const std::string& path)
      : path_(path == "-" ? "standard input" : path), file_(open(path)), decoder_(nullptr, ZSTD_freeDStream) {
    if (!file_.is_open()) {
      const std::error_code error(errno, std::generic_category());
      MMFREE_CHECK(MissingError, !leads_nowhere(error), path_, ": cannot open: ", error.message());
      throw IoError(concat(path_, ": cannot open: ", error.message()));
    }
    if (path.ends_with(".zst")) {
      decoder_.reset(ZSTD_createDStream());
      if (!decoder_) throw std::bad_alloc();
      ZSTD_DCtx_setParameter(decoder_.get(), ZSTD_d_windowLogMax, 27);
    }
  }

  /// Stores the next block; false, and an empty one, at the end of the file.
  bool next(std::string* block) {
    if (!decoder_) return read(block) > 0;
    do {
      // A full output buffer means that the decoder may hold more output: call it again before reading more input.
      if (input_.pos == input_.size && !output_full_) {
        const size_t n = read(&compressed_);
        input_ = {compressed_.data(), n, 0};
        if (input_.size == 0) {
          MMFREE_CHECK(DataError, frame_complete_, path_, ": the compressed file is truncated; get it again");
          block->clear();
          return false;
        }
      }
      block->resize(kBlock);
      ZSTD_outBuffer output{block->data(), kBlock, 0};
      const size_t before = input_.pos;
      const size_t state = ZSTD_decompressStream(decoder_.get(), &output, &input_);
      MMFREE_CHECK(DataError, !ZSTD_isError(state), path_, ": damaged zstd data: ", ZSTD_getErrorName(state));
      // A call without input and output returns the size of the next frame's header, not the state of this frame.
      if (input_.pos > before || output.pos > 0) frame_complete_ = state == 0;
      output_full_ = output.pos == output.size;
      block->resize(output.pos);
      bytes_out_ += int64_t(output.pos);
      MMFREE_CHECK(DataError, bytes_out_ <= kAnyRatioBytes + kMaxRatio * bytes_in_, path_, ": expands more than ",
                   kMaxRatio, "-fold: refused as hostile");
    } while (block->empty());
    return true;
  }

  const std::string& path() const { return path_; }
  int64_t bytes_read() const { return bytes_in_; }

 private:
  /// Reads what is available, without waiting for a whole block: a client on standard input may send line by line.
  size_t read(std::string* block) {
    block->resize(kBlock);
    const ssize_t n = retried([&] { return ::read(file_.get(), block->data(), kBlock); });
    MMFREE_CHECK(IoError, n >= 0, path_, ": read failed: ", error_text(errno));
    block->resize(size_t(n));
    bytes_in_ += n;
    return size_t(n);
  }

  std::string path_;
  Fd file_;
  std::unique_ptr<ZSTD_DStream, size_t (*)(ZSTD_DStream*)> decoder_;
  std::string compressed_;
  ZSTD_inBuffer input_{nullptr, 0, 0};
  bool frame_complete_ = true, output_full_ = false;
  int64_t bytes_in_ = 0, bytes_out_ = 0;
};

LineReader::LineReader(const std::string& path) : blocks_(std::make_unique<Blocks>(path)) {}

LineReader::~LineReader() = default;

int64_t LineReader::bytes_read() const { return blocks_->bytes_read(); }

bool LineReader::next(std::string* line) {
  line->clear();
  for (bool any = false;; any = true) {
    if (at_ == block_.size()) {
      at_ = 0;
      if (!blocks_->next(&block_)) return any;
    }
    const char* begin = block_.data() + at_;
    const size_t left = block_.size() - at_;
    const auto* end = static_cast<const char*>(std::memchr(begin, '\n', left));
    const size_t n = end ? size_t(end - begin) : left;
    MMFREE_CHECK(DataError, int64_t(line->size() + n) <= kMaxLineBytes, blocks_->path(), ": a line is longer than ",
                 kMaxLineBytes, " bytes; split it");
    line->append(begin, n);
    at_ += n + (end ? 1 : 0);
    if (end) return true;
  }
}

}  // namespace mmfree
