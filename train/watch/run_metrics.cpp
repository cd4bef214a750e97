#include "train/watch/run_metrics.h"

#include <algorithm>
#include <cmath>

#include "core/system/utf8.h"
#include "train/watch/metrics_line.h"

namespace mmfree {
namespace {
// Series that every run has room for: their places are known.
constexpr size_t kStep = 0, kTime = 1, kTokens = 2, kStepTime = 3, kNone = SIZE_MAX;
constexpr const char* kKnown[] = {"step", "time", "train/tokens", "train/step_time_ms"};
constexpr std::string_view kAlarm = "alarm";
constexpr double kMostStep = 9e15;  // a double holds whole numbers up to there
}  // namespace

void RunMetrics::read() {
  if (series_.empty()) clear();
  file_.read([this](std::string_view line) { add(line); }, [this] { clear(); });
}

void RunMetrics::clear() {
  steps_.clear(), tokens_.clear(), seconds_.clear(), clock_.clear();
  series_.clear(), alarms_.clear(), index_.clear(), follows_.clear();
  for (const char* key : kKnown) index_of(key);
  first_time_ = last_time_ = 0;
  timed_step_ = -1;
  times_steps_ = left_out_ = false;
  damaged_ = 0;
}

/// The place of a key's series, which is made if it is new; kNone for one that is left out.
size_t RunMetrics::index_of(std::string_view key) {
  if (key.size() > kMostKey || find_invalid_utf8(key) != key.npos) return kNone;
  const auto known = index_.find(std::string(key));
  if (known != index_.end()) return known->second;
  if (series_.size() >= kMostKeys) return left_out_ = true, kNone;
  index_.emplace(key, series_.size());
  series_.push_back({std::string(key), {}, {}});
  follows_.push_back(kNone);
  return series_.size() - 1;
}

void RunMetrics::add(std::string_view text) {
  MetricsLine line(text);
  std::string_view key;
  double value = 0, step = std::nan("");
  std::string_view alarm;
  row_.clear();
  for (size_t before = kNone; line.next(key, value);) {
    // Lines mostly have the keys of the line before, in the same order.
    size_t at = before == kNone ? kStep : follows_[before];
    if (at == kNone || series_[at].key != key) {
      at = index_of(key);
      if (at == kNone) continue;
      if (before != kNone) follows_[before] = at;
    }
    before = at;
    if (!line.text().empty() && key == kAlarm) alarm = line.text();
    if (at == kStep) step = value;
    if (std::isfinite(value)) row_.emplace_back(at, value);
  }
  if (!line.whole() || !(step >= 0 && step < kMostStep) || steps_.size() >= kMostRows) {
    ++damaged_;
    return;
  }
  if (!alarm.empty() && alarm.size() <= kMostAlarm && find_invalid_utf8(alarm) == alarm.npos) {
    if (alarms_.size() == kMostAlarms) alarms_.erase(alarms_.begin());
    alarms_.push_back({int64_t(step), std::string(alarm)});
  }
  end_row(int64_t(step));
}

void RunMetrics::end_row(int64_t step) {
  const auto row = uint32_t(steps_.size());
  double tokens = tokens_.empty() ? 0 : tokens_.back(), seconds = seconds_.empty() ? 0 : seconds_.back();
  for (const auto& [at, value] : row_) {
    if (at == kTokens) tokens = value;
    if (at == kTime) {
      if (first_time_ == 0) first_time_ = value;
      last_time_ = value;
    }
    if (at == kStepTime && value >= 0) {
      seconds += value / 1000 * double(std::max<int64_t>(0, step - std::max<int64_t>(0, timed_step_)));
      timed_step_ = step;
      times_steps_ = true;
    }
    if (at == kStep || at == kTime) continue;
    Series& series = series_[at];
    if (!series.rows.empty() && series.rows.back() == row) continue;  // a key that stands in the line twice
    series.rows.push_back(row);
    series.values.push_back(value);
  }
  steps_.push_back(step);
  tokens_.push_back(tokens);
  seconds_.push_back(seconds);
  clock_.push_back(std::max(0.0, last_time_ - first_time_));
}

const RunMetrics::Series* RunMetrics::find(std::string_view key) const {
  const auto found = index_.find(std::string(key));
  return found == index_.end() || series_[found->second].rows.empty() ? nullptr : &series_[found->second];
}

}  // namespace mmfree
