#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "core/system/files.h"

namespace mmfree {

/// Keys and values of one line of a metrics file, in the order they are written. Names in use: train/loss
/// train/grad_norm train/learning_rate train/epoch train/tokens train/tokens_per_sec train/step_time_ms val/loss
/// val/ppl val/bpb step tokens time.
using Metrics = std::vector<std::pair<std::string, std::variant<int64_t, double>>>;

/// One JSON object without a newline. Doubles read back exactly (shortest form); non-finite ones become null.
std::string metrics_line(const Metrics& metrics);

/// Appends one flat JSON object per line to a file; every line reaches the operating system before write returns. Lines
/// that could not be written are kept, and the next write or sync writes them first; lines not yet on the device are
/// kept too.
class MetricsWriter {
 public:
  /// Keeps the lines of an existing file whose "step" is <= resume_step (-1: none, a fresh run) and drops the others
  /// together with torn or damaged lines, so that a resumed run's file equals an uninterrupted one's. The kept lines
  /// replace the file in one rename. Rows of step S must be written before the checkpoint of step S.
  /// Throws CreateError if the file cannot be created, MissingError or IoError if reading or writing fails.
  explicit MetricsWriter(std::string path, int64_t resume_step = -1);

  /// Appends one line; `metrics` must contain "step". Throws IoError, for example when the disk is full, or
  /// CreateError.
  void write(const Metrics& metrics);
  /// Syncs all lines to the device; call before a checkpoint is complete. Throws IoError; the next call then writes a
  /// new file, because a failed sync leaves an unknown state on the disk.
  void sync();
  /// The largest step of a line with "val/loss", -1 without one.
  int64_t evaluated() const { return evaluated_; }
  /// Damaged lines the constructor dropped, the torn last one included.
  int64_t damaged_lines() const { return damaged_lines_; }

 private:
  void open();
  void flush();
  std::string path_;
  Fd file_;
  std::string unwritten_, unsynced_;
  size_t synced_ = 0;  ///< the file's first bytes, which are on the device
  bool sync_failed_ = false;
  int64_t evaluated_ = -1;
  int64_t damaged_lines_ = 0;
};

}  // namespace mmfree
