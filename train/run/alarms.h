#pragma once
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "train/run/telemetry.h"

namespace mmfree {

/// Reads the lines of telemetry and says in plain words what looks wrong: which matrix, the figure, what it may mean
/// and what to do. What was said is said again only after it was not so meanwhile, or twice as many rows are dead.
class Alarms {
 public:
  /// A scale below this share of its first value has collapsed.
  static constexpr double kCollapsed = 0.1;
  /// Codes stand still if none changed in so many lines in a row that span so many steps, ...
  static constexpr int kStillLines = 3;
  static constexpr int64_t kStillSteps = 100;
  /// ... while the learning rate was above this share of optim.lr.
  static constexpr double kMoving = 0.01;
  /// An input is saturated if more than this share of its codes is 127 or −127, and more than four codes of a row.
  static constexpr double kSaturated = 0.05;

  /// `config` must outlive it.
  Alarms(const RunConfig& config, const std::vector<WatchedMatrix>& matrices);
  /// What to say of a line, one text for each kind of alarm: ASCII, without quotes.
  std::vector<std::string> judge(const Metrics& line);
  /// Takes the lines of a metrics file as said: then a run that goes on says what one that was not stopped would.
  /// Nothing if it is no regular file. @throws IoError
  void replay(const std::string& metrics);

 private:
  enum Kind { dead, collapsed, still, saturated };
  static constexpr int kKinds = 4;
  struct State {
    const WatchedMatrix* matrix = nullptr;
    double dead_rows = 0, scale = 0, flips = -1, grad_norm = 0, saturation = 0;  ///< of the line at hand
    double first_scale = 0;
    int64_t first_step = -1, still_since = -1;
    int still_lines = 0;
    double told_rows = 0;
    bool told[kKinds] = {};
  };

  void note(std::string_view key, double value);
  std::vector<std::string> end_line(int64_t step);
  bool rings(State& state, Kind kind, int64_t step);
  void count_still(State& state, int64_t step) const;
  std::string text(const State& state, Kind kind, int64_t step) const;

  const RunConfig& config_;
  std::map<std::string, State, std::less<>> states_;
};

}  // namespace mmfree
