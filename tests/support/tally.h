#pragma once
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <map>
#include <string>

#include "core/error.h"

namespace mmfree {

/// What a fault program tells: progress, every failure with the command that replays it, and at the end one line of
/// counts.
class Tally {
 public:
  Tally(std::string program, int64_t cases) : program_(std::move(program)), cases_(cases) {}

  void count(const std::string& what) { ++counts_[what]; }
  /// Counts a failed case, and reports it if it is one of the first.
  void fail(const std::string& what, const std::string& replay) {
    if (++failures_ > kReported) return;
    std::printf("FAILED %s\n  replay: %s\n", what.c_str(), replay.c_str());
    std::fflush(stdout);
  }
  /// Call after each case; prints a line every ten seconds.
  void done_one() {
    ++done_;
    const double now = seconds();
    if (now < next_line_) return;
    next_line_ = now + 10;
    std::printf("%s: %lld of %lld cases, %lld failures, %.0f s to go\n", program_.c_str(), (long long)done_,
                (long long)cases_, (long long)failures_, now / double(done_) * double(cases_ - done_));
    std::fflush(stdout);
  }
  /// Prints the counts. Returns the program's exit status.
  int finish() const {
    std::string line = concat(program_, ": ", done_, " cases, ", failures_, " failures");
    for (const auto& [what, n] : counts_) line += concat(", ", n, " ", what);
    std::printf("%s, %.0f s\n", line.c_str(), seconds());
    return failures_ || !done_ ? 1 : 0;
  }

 private:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count(); }
  static constexpr int64_t kReported = 20;
  std::string program_;
  int64_t cases_, done_ = 0, failures_ = 0;
  std::map<std::string, int64_t> counts_;
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  double next_line_ = 10;
};

}  // namespace mmfree
