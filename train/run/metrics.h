#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "core/system/files.h"

namespace mmfree {

/// Keys and values of one line of a metrics file, in the order they are written. Names in use: step time
/// train/loss train/grad_norm train/learning_rate train/epoch train/tokens train/tokens_per_sec train/step_time_ms
/// train/mfu train/data_wait train/peak_memory val/loss val/ppl val/bpb; with several ranks train/ranks, of each rank's
/// own milliseconds per step train/rank_slowest_ms (of rank train/rank_slowest) and train/rank_fastest_ms, the share of
/// the time that ranks wait for others train/rank_wait, and the bytes per step that all send train/rank_bytes.
/// of other sets eval/NAME/loss, ppl and bpb; what Telemetry measures, and in lines of its own the texts of `alarm`.
/// train/digest follows from the bits of loss and gradient norm, checkpoint/weights from those of the weights that a
/// checkpoint was to hold (train/run/digest.h).
using Metrics = std::vector<std::pair<std::string, std::variant<int64_t, double, std::string>>>;

/// What a metrics file says of a step that can be made again.
struct StepDigests {
  double loss = 0, grad_norm = 0;
  std::string step, weights;  ///< digests; empty: not told
};
/// By step. Of a file that is older than digests, those of the losses and norms that it holds; damaged lines are passed
/// over. @throws MissingError, IoError
std::map<int64_t, StepDigests> read_digests(const std::string& path);

/// One JSON object without a newline. Doubles read back exactly (shortest form); non-finite ones become null.
std::string metrics_line(const Metrics& metrics);

/// Appends one flat JSON object per line to a file; every line reaches the operating system before write returns. Lines
/// that could not be written are kept, and the next write or sync writes them first; lines not yet on the device are
/// kept too. Beyond a limit the oldest of them are dropped.
class MetricsWriter {
 public:
  static constexpr size_t kMostKept = size_t(64) << 20;
  /// The first and the last step of some lines.
  using Steps = std::pair<int64_t, int64_t>;

  /// Keeps the lines of an existing file whose "step" is <= resume_step (-1: none, a fresh run) and drops the others
  /// together with torn or damaged lines, so that a resumed run's file equals an uninterrupted one's. The kept lines
  /// replace the file in one rename. Rows of step S must be written before the checkpoint of step S. At most
  /// `most_kept` bytes of lines are kept. Throws CreateError if the file cannot be created or is a pipe, a socket or a
  /// directory, MissingError or IoError if reading or writing fails.
  explicit MetricsWriter(std::string path, int64_t resume_step = -1, size_t most_kept = kMostKept);

  /// Appends one line; `metrics` must contain "step". Throws IoError, for example when the disk is full, or
  /// CreateError.
  void write(const Metrics& metrics);
  /// Syncs all lines to the device; call before a checkpoint is complete. Throws IoError; the next call then writes a
  /// new file, because a failed sync leaves an unknown state on the disk.
  void sync();
  /// The largest step of a line with "val/loss", -1 without one.
  int64_t evaluated() const { return evaluated_; }
  /// The largest step of a line, -1 without any.
  int64_t last_step() const { return last_; }
  /// Its loss; NaN if the line holds none.
  double evaluated_loss() const { return evaluated_loss_; }
  /// The first and last step of the lines that were dropped, could not be written, or are in doubt after a failed sync;
  /// nothing without any.
  std::optional<Steps> missing() const;
  /// Whether lines were dropped because too many waited.
  bool dropped() const { return dropped_.has_value(); }
  /// Damaged lines the constructor dropped, the torn last one included.
  int64_t damaged_lines() const { return damaged_lines_; }

 private:
  void open();
  void flush();
  void bound(std::string& lines, int64_t first_step);
  std::string path_;
  Fd file_;
  std::string unwritten_, unsynced_;
  size_t most_kept_;
  int64_t first_unwritten_ = -1, first_unsynced_ = -1, last_ = -1;  ///< steps
  std::optional<Steps> dropped_;
  size_t synced_ = 0;  ///< the file's first bytes, which are on the device
  bool sync_failed_ = false;
  int64_t evaluated_ = -1;
  double evaluated_loss_ = 0;
  int64_t damaged_lines_ = 0;
};

}  // namespace mmfree
