#include "data/text/byte_source.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "core/error.h"
#include "data/paths.h"

namespace mmfree {

namespace {
/// Largest ratio of expansion. Text is far below it; a file made to exhaust memory is above.
constexpr int64_t kMaxRatio = 4096;
/// The ratio is not checked up to this many bytes of output.
constexpr int64_t kAnyRatioBytes = int64_t(64) << 20;
constexpr size_t kBlock = 1 << 17;

/// How compressed data begin.
constexpr std::pair<std::string_view, Compression> kMarks[] = {{"\x28\xB5\x2F\xFD", Compression::zstd},
                                                               {"\x1F\x8B", Compression::gzip}};

Fd open(const std::string& path) {
  if (path == "-") return Fd(::fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 0));
  return Fd(retried([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC); }));
}
}  // namespace

Compression take_compression(std::string_view* path) {
  for (const auto& [suffix, compression] : {std::pair{".zst", Compression::zstd}, {".gz", Compression::gzip}})
    if (has_suffix(*path, suffix)) {
      path->remove_suffix(std::string_view(suffix).size());
      return compression;
    }
  return Compression::none;
}

ByteSource::ByteSource(const std::string& path, std::function<void()> check_stop)
    : name_(path == "-" ? "standard input" : path),
      check_stop_(std::move(check_stop)),
      file_(open(path)),
      unknown_(path == "-") {
  if (!file_.is_open()) {
    const std::error_code error(errno, std::generic_category());
    MMFREE_CHECK(MissingError, !leads_nowhere(error), name_, ": cannot open: ", error.message());
    throw IoError(concat(name_, ": cannot open: ", error.message()));
  }
  std::string_view stem = path;
  decoder_ = make_decoder(take_compression(&stem), name_);
}

/// Returns when there is something to read, or the end. A regular file never waits.
void ByteSource::wait() const {
  const int milliseconds = check_stop_ ? 100 : -1;
  pollfd file{file_.get(), POLLIN, 0};
  int ready = 0;
  do {
    if (check_stop_) check_stop_();
    ready = ::poll(&file, 1, milliseconds);
  } while (ready == 0 || (ready < 0 && errno == EINTR));
}

size_t ByteSource::read(char* to, size_t room) {
  wait();
  const ssize_t n = retried([&] { return ::read(file_.get(), to, room); });
  MMFREE_CHECK(IoError, n >= 0, name_, ": read failed: ", error_text(errno));
  bytes_in_ += n;
  return size_t(n);
}

/// Reads the next bytes of the file into rest_; false at its end.
bool ByteSource::refill() {
  stored_.resize(kBlock);
  size_t size = read(stored_.data(), kBlock);
  const auto head = [&] { return std::string_view(stored_).substr(0, size); };
  if (std::exchange(unknown_, false)) {
    for (const auto& [mark, compression] : kMarks) {
      // One read may bring a part of the mark only.
      for (size_t n = size; n > 0 && size < mark.size() && mark.starts_with(head()); size += n)
        n = read(stored_.data() + size, kBlock - size);
      if (head().starts_with(mark)) decoder_ = make_decoder(compression, name_);
    }
  }
  rest_ = head();
  return size > 0;
}

bool ByteSource::next(std::string* block) {
  block->clear();
  do {
    if (rest_.empty() && !full_ && !refill()) {
      MMFREE_CHECK(DataError, !decoder_ || decoder_->between_frames(), name_,
                   ": the compressed file is truncated; get it again");
      return false;
    }
    if (!decoder_) {
      stored_.resize(rest_.size());
      block->swap(stored_);
      rest_ = {};
      return true;
    }
    block->resize(kBlock);
    block->resize(decoder_->decode(&rest_, block->data(), kBlock));
    full_ = block->size() == kBlock;
    bytes_out_ += int64_t(block->size());
    MMFREE_CHECK(DataError, bytes_out_ <= kAnyRatioBytes + kMaxRatio * bytes_in_, name_, ": expands more than ",
                 kMaxRatio, "-fold: refused as hostile");
  } while (block->empty());
  return true;
}

}  // namespace mmfree
