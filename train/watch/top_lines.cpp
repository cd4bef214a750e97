#include "train/watch/top_lines.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "core/error.h"
#include "core/system/console.h"
#include "core/system/utf8.h"
#include "train/run/progress.h"
#include "train/watch/decimate.h"

namespace mmfree {
namespace {

constexpr const char *kBold = "\x1b[1m", *kDim = "\x1b[2m", *kWarning = "\x1b[1;91m", *kPlain = "\x1b[0m";
constexpr const char* kColors[] = {"\x1b[94m", "\x1b[33m", "\x1b[32m", "\x1b[95m", "\x1b[36m", "\x1b[91m"};
constexpr size_t kNameWidth = 10, kValueWidth = 11, kFewestPerRun = 1;

size_t characters(std::string_view text) {
  size_t n = 0;
  for (const char c : text) n += (uint8_t(c) & 0xC0) != 0x80;
  return n;
}

/// The first `most` characters.
std::string_view first_characters(std::string_view text, size_t most) {
  size_t at = 0;
  while (at < text.size() && most > 0) {
    at += size_t(std::max(1, utf8_char(text.substr(at))));
    --most;
  }
  return text.substr(0, at);
}

/// A line that takes no more characters than fit.
class Line {
 public:
  explicit Line(const TopStyle& style) : style_(style) {}
  Line& add(std::string_view text, const char* look = nullptr) {
    const std::string_view fits = first_characters(text, style_.columns - width_);
    width_ += characters(fits);
    const bool looks = look && style_.color && !fits.empty();
    if (looks) text_ += look;
    text_ += fits;
    if (looks) text_ += kPlain;
    return *this;
  }
  /// Spaces up to a column.
  Line& to(size_t column) { return column > width_ ? add(std::string(column - width_, ' ')) : *this; }
  size_t left() const { return style_.columns - width_; }
  const std::string& text() const { return text_; }

 private:
  const TopStyle& style_;
  std::string text_;
  size_t width_ = 0;
};

template <class... Args>
std::string printed(const char* format, Args... args) {
  char buffer[64];
  std::snprintf(buffer, sizeof buffer, format, args...);
  return buffer;
}

struct Row {
  const char *key, *name;
  std::string (*show)(double);
};
std::string show_loss(double v) { return printed("%.4f", v); }
std::string show_short(double v) { return printed("%.4g", v); }
std::string show_bytes(double v) { return v >= 0 && v < 1e19 ? format_bytes(uint64_t(v)) : "-"; }
std::string show_ms(double v) { return format_duration(v / 1000); }
/// The most important first.
constexpr Row kRows[] = {{"train/loss", "loss", show_loss},
                         {"val/loss", "val loss", show_loss},
                         {"train/tokens_per_sec", "tok/s", format_count},
                         {"train/grad_norm", "grad norm", show_short},
                         {"train/learning_rate", "rate", show_short},
                         {"val/bpb", "bits/byte", show_loss},
                         {"train/mfu", "mfu", format_share},
                         {"train/step_time_ms", "step", show_ms},
                         {"train/data_wait", "wait", format_share},
                         {"train/peak_memory", "memory", show_bytes},
                         {"ternary/all/zeros", "zeros", format_share},
                         {"ternary/all/flips", "flips", format_share},
                         {"act/all/saturation", "saturated", format_share}};

std::string bar(double share, size_t width, bool utf8) {
  static const char* const eighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  const double filled = std::clamp(share, 0.0, 1.0) * double(width);
  std::string text;
  size_t n = size_t(filled);
  for (size_t i = 0; i < n; ++i) text += utf8 ? "█" : "#";
  const int part = int((filled - double(n)) * 8);
  if (utf8 && n < width && part > 0) text += eighths[part], ++n;
  for (; n < width; ++n) text += utf8 ? "·" : ".";
  return text;
}

/// Seconds per step of late, 0 if unknown.
double step_seconds(const RunMetrics& m) {
  const RunMetrics::Series* times = m.find("train/step_time_ms");
  if (!times) return 0;
  const size_t n = std::min<size_t>(20, times->values.size());
  double sum = 0;
  for (size_t i = times->values.size() - n; i < times->values.size(); ++i) sum += times->values[i] / 1000 / double(n);
  return sum;
}

std::string head(const RunData& run, const TopStyle& style, size_t index, double now) {
  const RunMetrics& m = *run.metrics;
  const int64_t step = m.steps().empty() ? 0 : m.steps().back();
  const int64_t steps = run.config ? run.config->train.steps : 0;
  const std::string name = console::escaped(run.name);
  Line line(style);
  line.add(style.utf8 ? "● " : "* ", kColors[index % std::size(kColors)]);
  line.add(first_characters(name, std::max<size_t>(12, style.columns / 3)), kBold).add("  ");
  if (m.steps().empty()) return line.add("no metrics yet", kDim).text();
  line.add(concat("step ", step, steps ? concat("/", steps) : "", "  "));
  std::string end;
  const double quiet = now - m.last_time(), step_time = step_seconds(m);
  const auto interval = m.steps().size() > 1 ? m.seconds().back() / double(m.steps().size()) : 0;
  if (steps && step >= steps)
    end = "finished";
  else if (m.last_time() > 0 && quiet > std::max(60.0, 10 * interval))
    end = "quiet for " + format_duration(quiet);
  else if (steps && step_time > 0)
    end = "eta " + format_duration(double(steps - step) * step_time);
  const std::string tokens = m.tokens().back() > 0 ? format_count(m.tokens().back()) + " tokens  " : "";
  const std::string ran = format_duration(m.seconds().back()) + "  ";
  const size_t after = tokens.size() + ran.size() + end.size() + 7;
  if (steps > 0 && line.left() > after + 8) {
    const double share = double(step) / double(steps);
    line.add(bar(share, std::min<size_t>(40, line.left() - after), style.utf8), kColors[index % std::size(kColors)]);
    line.add(printed(" %3.0f%%  ", std::floor(100 * share)));
  }
  return line.add(tokens).add(ran).add(end, kBold).text();
}

/// NAME of a key eval/NAME/loss as a row's name; empty for another key.
std::string set_of(const std::string& key) {
  constexpr std::string_view kBegin = "eval/", kEnd = "/loss";
  if (!key.starts_with(kBegin) || !key.ends_with(kEnd) || key.size() <= kBegin.size() + kEnd.size()) return {};
  const std::string name = console::escaped(key.substr(kBegin.size(), key.size() - kBegin.size() - kEnd.size()));
  return "on " + std::string(first_characters(name, kNameWidth - 4));
}

/// The newest of what looks wrong.
std::string alarm(const RunMetrics& m, const TopStyle& style) {
  Line line(style);
  const RunMetrics::Alarm& last = m.alarms().back();
  line.add("  ").add("alarm", kWarning).to(2 + kNameWidth);
  if (m.alarms().size() > 1) line.add(concat(m.alarms().size(), " in all, "));
  return line.add(concat("step ", last.step, ": ")).add(console::escaped(last.text)).text();
}

std::string row(const RunMetrics::Series& series, const Row& shown, const TopStyle& style, size_t index) {
  Line line(style);
  line.add("  ").add(shown.name, kDim).to(2 + kNameWidth).add(shown.show(series.values.back()));
  line.to(2 + kNameWidth + kValueWidth);
  if (line.left() < 4) return line.text();
  return line.add(sparkline(series.values, line.left() - 1, style.utf8), kColors[index % std::size(kColors)]).text();
}

}  // namespace

std::string sparkline(const std::vector<double>& values, size_t width, bool utf8) {
  static const char* const blocks[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  static const char* const marks[] = {"_", ".", ",", "-", "~", "=", "^", "#"};
  if (values.empty() || width == 0) return {};
  std::vector<double> means;
  for (const Bucket& b : decimate(values, width)) means.push_back(b.mean);
  std::vector<double> sorted = means;
  std::sort(sorted.begin(), sorted.end());
  const size_t cut = sorted.size() / 20;
  const double low = sorted[cut], high = sorted[sorted.size() - 1 - cut];
  std::string text;
  for (const double v : means) {
    const double share = high > low ? std::clamp((v - low) / (high - low), 0.0, 1.0) : 0.5;
    const auto level = size_t(std::lround(7 * (std::isfinite(share) ? share : 0.5)));
    text += (utf8 ? blocks : marks)[level];
  }
  return text;
}

std::vector<std::string> top_lines(const std::vector<RunData>& runs, const TopStyle& style, double now) {
  std::vector<std::string> lines;
  if (runs.empty() || style.rows == 0 || style.columns == 0) return lines;
  const size_t per_run = std::max(kFewestPerRun, style.rows / runs.size());
  for (size_t i = 0; i < runs.size() && lines.size() < style.rows; ++i) {
    const bool more_than_fit = runs.size() - i > style.rows - lines.size();
    if (more_than_fit && lines.size() + 1 == style.rows) {
      lines.push_back(Line(style).add(concat("and ", runs.size() - i, " more"), kDim).text());
      break;
    }
    lines.push_back(head(runs[i], style, i, now));
    size_t used = 1;
    const bool gap = per_run > 3;
    if (!runs[i].metrics->alarms().empty() && used + gap < per_run) {
      lines.push_back(alarm(*runs[i].metrics, style));
      ++used;
    }
    for (const Row& shown : kRows) {
      const RunMetrics::Series* series = runs[i].metrics->find(shown.key);
      if (!series || used + gap >= per_run) continue;
      lines.push_back(row(*series, shown, style, i));
      ++used;
    }
    for (const RunMetrics::Series& series : runs[i].metrics->series()) {
      const std::string set = set_of(series.key);
      if (set.empty() || series.rows.empty() || used + gap >= per_run) continue;
      lines.push_back(row(series, {nullptr, set.c_str(), show_loss}, style, i));
      ++used;
    }
    if (gap && i + 1 < runs.size()) lines.emplace_back();
  }
  return lines;
}

}  // namespace mmfree
