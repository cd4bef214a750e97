#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "train/watch/growing_file.h"

namespace mmfree {

/// The metrics of a run by key, read from its metrics.jsonl, which may grow meanwhile and may come from anywhere.
class RunMetrics {
 public:
  /// Keys and lines beyond these are left out.
  static constexpr size_t kMostKeys = 8192, kMostRows = size_t(1) << 31;
  static constexpr size_t kMostKey = 200;  ///< bytes

  /// What a run said of its model in a line of its own (see Alarms).
  struct Alarm {
    int64_t step = 0;
    std::string text;
  };
  static constexpr size_t kMostAlarms = 256, kMostAlarm = 1000;  ///< the later ones, and bytes of a text

  /// The finite values of a key and the rows they stand in, ascending.
  struct Series {
    std::string key;
    std::vector<uint32_t> rows;
    std::vector<double> values;
  };

  explicit RunMetrics(std::string path) : file_(std::move(path)) {}
  /// Reads what is new. If the file was cut back or replaced, all is read again. @throws as GrowingFile::read
  void read();

  // Of each row, which is a whole line with a step.
  const std::vector<int64_t>& steps() const { return steps_; }
  /// Tokens trained on; before the first line that tells, 0.
  const std::vector<double>& tokens() const { return tokens_; }
  /// Seconds of training, evaluation and saving excluded; where no line tells how long steps take, since the first.
  const std::vector<double>& seconds() const { return times_steps_ ? seconds_ : clock_; }
  /// When the first and the last line were written, in seconds since 1970; 0 where no line tells.
  double first_time() const { return first_time_; }
  double last_time() const { return last_time_; }

  /// In the order of their first appearance.
  const std::vector<Series>& series() const { return series_; }
  /// nullptr without any value of that key.
  const Series* find(std::string_view key) const;
  const std::vector<Alarm>& alarms() const { return alarms_; }
  /// Lines that are no flat JSON objects with a step, or too long.
  int64_t damaged_lines() const { return damaged_ + file_.passed_over(); }
  /// Whether keys were left out because there were too many.
  bool left_out() const { return left_out_; }

 private:
  void add(std::string_view line);
  void end_row(int64_t step);
  size_t index_of(std::string_view key);
  void clear();

  GrowingFile file_;
  std::vector<int64_t> steps_;
  std::vector<double> tokens_, seconds_, clock_;
  std::vector<Series> series_;
  std::vector<Alarm> alarms_;
  std::unordered_map<std::string, size_t> index_;
  std::vector<size_t> follows_;  ///< the series that stood behind each one in the line before
  std::vector<std::pair<size_t, double>> row_;
  double first_time_ = 0, last_time_ = 0;
  int64_t timed_step_ = -1;  ///< the last step of which a time is known
  bool times_steps_ = false, left_out_ = false;
  int64_t damaged_ = 0;
};

}  // namespace mmfree
