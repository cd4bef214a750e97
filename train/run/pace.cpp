#include "train/run/pace.h"

#include <chrono>

namespace mmfree {

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void Pace::step(int64_t tokens) {
  tokens_ += tokens;
  if (++steps_ == kFirst) first_ = seconds() - evaluating_;
}

void Pace::pause(double seconds, int64_t evaluated) {
  idle_ += seconds;
  if (evaluated == 0) return;
  evaluating_ += seconds;
  evaluated_ += evaluated;
}

double Pace::seconds_for(int64_t steps, int64_t tokens) const {
  const bool settled = steps_ >= 2 * kFirst;
  const double took = seconds() - evaluating_ - (settled ? first_ : 0);
  const int64_t made = steps_ - (settled ? kFirst : 0);
  const double training = made > 0 ? double(steps) * took / double(made) : 0;
  return training + (evaluated_ > 0 ? double(tokens) * evaluating_ / double(evaluated_) : 0);
}

}  // namespace mmfree
