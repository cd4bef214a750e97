#pragma once
#include <cstdint>
#include <functional>
#include <utility>

namespace mmfree {

/// Seconds since some moment; they never go back.
using Clock = std::function<double()>;
double steady_seconds();

/// How fast this process trains, and how long it still takes. Evaluations and other pauses are no training: they count
/// for the time that is left alone.
class Pace {
 public:
  explicit Pace(Clock clock = steady_seconds) : clock_(std::move(clock)), start_(clock_()) {}

  /// Sets the time to zero.
  void start() { start_ = clock_(); }
  /// Seconds since the start.
  double seconds() const { return clock_() - start_; }
  /// The same without pauses.
  double training() const { return seconds() - idle_; }
  /// A step on `tokens` tokens ended now.
  void step(int64_t tokens);
  /// Training stood still for `seconds`, in which `evaluated` tokens were scored; 0: it was no evaluation.
  void pause(double seconds, int64_t evaluated = 0);

  /// Tokens of the steps so far in a second of training; 0 without any.
  double tokens_per_second() const { return tokens_ > 0 ? double(tokens_) / training() : 0; }
  /// Seconds that `steps` steps more take, with such pauses as there were, and evaluations that score `tokens` tokens
  /// in all; of evaluations nothing is known before the first. The first two steps of a process take longer than
  /// others, because buffers are made and steps are recorded: from the fourth on they do not count.
  double seconds_for(int64_t steps, int64_t tokens) const;

 private:
  static constexpr int64_t kFirst = 2;

  Clock clock_;
  double start_;
  double idle_ = 0;                 ///< seconds of all pauses
  double evaluating_ = 0;           ///< of these, of evaluations
  int64_t evaluated_ = 0;           ///< tokens in them
  int64_t steps_ = 0, tokens_ = 0;  ///< so far
  double first_ = 0;                ///< seconds but those of evaluations, up to the end of step kFirst
};

}  // namespace mmfree
