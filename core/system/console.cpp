#include "core/system/console.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstdarg>
#include <cstdio>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/system/files.h"
#include "core/system/signals.h"
#include "core/system/utf8.h"

namespace mmfree::console {

constinit Stream out(STDOUT_FILENO, Stream::Stuck::waits);
constinit Stream err(STDERR_FILENO, Stream::Stuck::given_up);

namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kPatience = std::chrono::seconds(2);
constexpr int kSliceMs = 50;  // a signal may come just before a wait begins
constexpr size_t kLongestShown = sizeof "\\u{10ffff}";

/// Characters that move the cursor, change the direction of what follows, or cannot be seen.
bool steers(unsigned c) {
  constexpr std::pair<unsigned, unsigned> kRanges[] = {
      {0x00, 0x08},     {0x0B, 0x1F},     {0x7F, 0x9F},     {0x061C, 0x061C}, {0x180E, 0x180E},  {0x200E, 0x200F},
      {0x2028, 0x202E}, {0x2060, 0x206F}, {0xFEFF, 0xFEFF}, {0xFFF9, 0xFFFB}, {0xE0000, 0xE007F}};
  return std::any_of(std::begin(kRanges), std::end(kRanges),
                     [c](const auto& range) { return c >= range.first && c <= range.second; });
}

/// Moves the first character of `text` to `to`, spelled out if need be. Returns the bytes written, < kLongestShown.
size_t show_first(std::string_view& text, char* to) {
  const int length = utf8_char(text);
  const auto byte = static_cast<unsigned char>(text[0]);
  if (length <= 0) {
    text.remove_prefix(1);
    return size_t(std::snprintf(to, kLongestShown, "\\x%02x", byte));
  }
  const std::string_view character = text.substr(0, size_t(length));
  text.remove_prefix(size_t(length));
  unsigned code = length == 1 ? byte : byte & (0x7Fu >> length);
  for (const char c : character.substr(1)) code = code << 6 | (static_cast<unsigned char>(c) & 0x3F);
  if (!steers(code)) return character.copy(to, character.size());
  return size_t(std::snprintf(to, kLongestShown, code < 0x80 ? "\\x%02x" : "\\u{%x}", code));
}

/// The pipe or terminal behind `fd`, opened once more so that no write blocks: a mode of `fd` itself would be seen by
/// every process that shares it. Not open for anything else, and where it cannot be.
Fd opened_again(int fd) {
  struct stat info = {};
  if (::fstat(fd, &info) != 0 || !(S_ISFIFO(info.st_mode) || ::isatty(fd))) return Fd();
  char path[32];
  std::snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  return Fd(::open(path, O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
}

}  // namespace

std::string escaped(std::string_view text) {
  std::string shown;
  char one[kLongestShown];
  while (!text.empty()) shown.append(one, show_first(text, one));
  return shown;
}

bool Stream::is_terminal() const { return ::isatty(fd_); }

void Stream::print(std::string_view text) {
  if (!is_terminal()) return control(text);
  char shown[PIPE_BUF];
  size_t n = 0;
  while (!text.empty()) {
    n += show_first(text, shown + n);
    if (n + kLongestShown > sizeof shown || text.empty()) control({shown, std::exchange(n, 0)});
  }
}

void Stream::format(const char* format, ...) {
  va_list arguments, again;
  va_start(arguments, format);
  va_copy(again, arguments);
  std::vector<char> text(size_t(std::vsnprintf(nullptr, 0, format, arguments)) + 1);
  std::vsnprintf(text.data(), text.size(), format, again);
  va_end(arguments);
  va_end(again);
  print({text.data(), text.size() - 1});
}

void Stream::control(std::string_view bytes) {
  if (lost_ > 0) {
    char notice[96];
    std::snprintf(notice, sizeof notice, "%smmfree: %zu bytes of output are lost here: they were not taken\n",
                  in_line_ ? "\n" : "", lost_);
    if (send(notice) > 0) {
      lost_ += bytes.size();
      return;
    }
    lost_ = 0;
  }
  lost_ = send(bytes);
}

/// Returns how many of the last `bytes` could not be written.
size_t Stream::send(std::string_view bytes) {
  const Fd again = opened_again(fd_);
  const int fd = again.is_open() ? again.get() : fd_;
  auto since = Clock::now();
  while (!bytes.empty()) {
    pollfd room = {fd, POLLOUT, 0};
    const bool try_it = again.is_open() || ::poll(&room, 1, 0) > 0;
    // A pipe with room takes PIPE_BUF bytes without blocking.
    const ssize_t n = try_it ? ::write(fd, bytes.data(), std::min<size_t>(bytes.size(), PIPE_BUF)) : 0;
    if (n > 0) {
      in_line_ = bytes[size_t(n) - 1] != '\n';
      bytes.remove_prefix(size_t(n));
      since = Clock::now();
      continue;
    }
    const int error = n < 0 && errno != EAGAIN && errno != EINTR ? errno : 0;
    if (stuck_ == Stuck::waits) {
      MMFREE_CHECK(IoError, !error, "standard output: cannot be written: ", error_text(error));
      throw_if_stopped();
    } else if (error || lost_ > 0 || StopSignals::pending() || Clock::now() - since > kPatience) {
      break;
    }
    ::poll(&room, 1, kSliceMs);
    ::poll(nullptr, 0, 1);  // a terminal may say that it has room where it has too little
  }
  return bytes.size();
}

}  // namespace mmfree::console
