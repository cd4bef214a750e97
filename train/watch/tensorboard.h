#pragma once
#include <cstdint>
#include <map>
#include <string>

#include "core/system/files.h"
#include "train/run/metrics.h"

namespace mmfree {

/// Shows a run's metrics to TensorBoard: an event file in RUN/tb/ whose tags are the keys of metrics.jsonl. That file
/// is the source of truth. Each start writes a new event file from what metrics.jsonl holds then, and empties the older
/// ones, so that no step appears twice after kills and resumes; a TensorBoard that is open drops what it had.
class TensorBoard {
 public:
  /// Writes the event file of what `metrics` (a path; nothing if it is no regular file) holds into `folder`, which is
  /// made. Empties older event files of mmfree there, and removes those that are empty for a day; nothing else. @throws
  /// CreateError, IoError
  TensorBoard(std::string folder, std::string metrics);
  /// Appends a point for each finite value of a line; "step" and "time" say where and when. A key that has a point of
  /// this step or a later one is left out. The bytes reach the operating system before it returns.
  /// @throws IoError; then the file ends in a torn record, and must be written anew
  void write(const Metrics& line);
  const std::string& path() const { return path_; }

 private:
  void create();
  void remove_emptied() const;
  void replay();
  void add(std::string_view key, double value);
  void end_line(double time, double step);
  void flush();

  struct Less {
    using is_transparent = void;
    bool operator()(std::string_view a, std::string_view b) const { return a < b; }
  };
  std::string folder_, metrics_, path_;
  Fd file_;
  std::map<std::string, int64_t, Less> last_step_;          ///< of each key's newest point
  std::vector<std::pair<std::string_view, float>> values_;  ///< of the line at hand; their keys live in last_step_
  std::vector<int64_t*> steps_;                             ///< and where their steps are noted
  std::string unwritten_;
};

/// The event files of mmfree in a folder, oldest first: events.out.tfevents.SECONDS.mmfree that begin as ours do.
/// Emptied ones are not among them.
std::vector<std::string> event_files(const std::string& folder);

}  // namespace mmfree
