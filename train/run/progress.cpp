#include "train/run/progress.h"

#include <sys/ioctl.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string_view>

namespace mmfree {
namespace {

constexpr const char* kClearLine = "\r\x1b[K";

template <class... Args>
std::string printed(const char* format, Args... args) {
  char buffer[128];
  std::snprintf(buffer, sizeof buffer, format, args...);
  return buffer;
}

/// `value` < 1000 with three significant digits; rounding to 1000 is the caller's business.
std::string three_digits(double value) {
  return printed(value < 9.995 ? "%.2f" : value < 99.95 ? "%.1f" : "%.0f", value);
}

bool set(const char* variable) {
  const char* value = std::getenv(variable);
  return value && *value;
}

bool updates_in_place(const console::Stream& out) {
  const char* term = std::getenv("TERM");
  return out.is_terminal() && !(term && std::string_view(term) == "dumb");
}

size_t columns(const console::Stream& out) {
  winsize size{};
  return ioctl(out.fd(), TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

std::string format_count(double value) {
  if (!std::isfinite(value)) return "-";
  const char* units[] = {"", "k", "M", "G", "T"};
  int unit = 0;
  for (; unit < 4 && std::fabs(value) >= 999.5; ++unit) value /= 1000;
  if (unit == 0) return printed("%.0f", value);
  return (value < 0 ? "-" : "") + three_digits(std::fabs(value)) + units[unit];
}

std::string format_duration(double seconds) {
  constexpr double kLongest = 1e12;
  if (!(seconds >= 0 && seconds < kLongest)) return "-";
  if (seconds < 9.95) return printed("%.1fs", seconds);
  const int64_t s = std::llround(seconds);
  const auto two = [](int64_t large, char a, int64_t small, char b) {
    return printed("%lld%c%02lld%c", static_cast<long long>(large), a, static_cast<long long>(small), b);
  };
  if (s < 60) return printed("%llds", static_cast<long long>(s));
  if (s < 3600) return two(s / 60, 'm', s % 60, 's');
  if (s < 86400) return two(s / 3600, 'h', s / 60 % 60, 'm');
  return two(s / 86400, 'd', s / 3600 % 24, 'h');
}

std::string format_bytes(uint64_t bytes) {
  const char* units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes < 1024) return printed("%llu B", static_cast<unsigned long long>(bytes));
  double value = static_cast<double>(bytes) / 1024;
  int unit = 0;
  for (; unit < 5 && value >= 1023.5; ++unit) value /= 1024;
  return three_digits(value) + " " + units[unit];
}

std::string format_share(double share) {
  if (!std::isfinite(share)) return "-";
  if (share > 0 && share < 1e-4) return "< 0.01%";
  return printed(std::fabs(share) < 9.995 ? "%.3g%%" : "%.0f%%", 100 * share);
}

std::string progress_line(const ProgressState& s) {
  const double percent = s.steps > 0 ? 100.0 * static_cast<double>(s.step) / static_cast<double>(s.steps) : 0;
  return printed("step %lld/%lld  %.0f%%", static_cast<long long>(s.step), static_cast<long long>(s.steps),
                 std::floor(percent)) +
         printed("  loss %.4f  lr %.2e  norm %.2f  ", s.loss, s.learning_rate, s.grad_norm) +
         format_count(s.tokens_per_second) + " tok/s  " +
         (s.gpu ? (s.gpu->mfu > 0 ? printed("mfu %.0f%%  ", 100 * s.gpu->mfu) : std::string()) +
                      printed("wait %.0f%%  ", 100 * s.gpu->data_wait) + format_bytes(s.gpu->peak) + "  "
                : std::string()) +
         (s.ranks ? printed("%d ranks wait %.0f%%  ", s.ranks->count, 100 * s.ranks->wait) : std::string()) +
         format_duration(s.elapsed) + "  eta " + format_duration(s.eta);
}

Progress::Progress(bool quiet, console::Stream& out)
    : out_(out), quiet_(quiet), terminal_(updates_in_place(out)), color_(terminal_ && !set("NO_COLOR")) {}

void Progress::update(const ProgressState& state) {
  if (quiet_) return;
  std::string line = progress_line(state);
  if (terminal_) {
    // A wrapped line cannot be overwritten. The last column stays free because some terminals wrap there.
    line.resize(std::min(line.size(), columns(out_) - 1));
    if (color_) line = "\x1b[1m" + line.insert(std::min(line.find("  "), line.size()), "\x1b[0m");
    out_.control(kClearLine + line);
    shown_ = line;
  } else {
    out_.print(line + "\n");
  }
}

void Progress::message(const std::string& text) {
  if (shown_.empty()) return out_.print(text + "\n");
  out_.control(kClearLine + console::escaped(text) + "\n" + shown_);
}

void Progress::finish() {
  if (shown_.empty()) return;
  out_.print("\n");
  shown_.clear();
}

void ShareProgress::update(double share, const std::string& note) {
  const bool terminal = updates_in_place(console::err);
  const double now = std::chrono::duration<double>(Clock::now() - start_).count();
  if (share <= 0 || now < 2 || (last_ >= 0 && now < last_ + (terminal ? 0.5 : 30))) return;
  last_ = now;
  const std::string line = what_ + printed(": %3.0f%%  ", std::floor(100 * share)) + note + (note.empty() ? "" : "  ") +
                           "eta " + format_duration(now / share - now);
  if (terminal)
    console::err.control(kClearLine + console::escaped(line));
  else
    console::err.print(line + "\n");
}

ShareProgress::~ShareProgress() {
  if (last_ >= 0 && updates_in_place(console::err)) console::err.print("\n");
}

}  // namespace mmfree
