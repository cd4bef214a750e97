#pragma once
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "core/system/console.h"

namespace mmfree {

/// "999", "1.23k", "1.23M", "374M": three significant digits with k, M, G or T.
std::string format_count(double value);
/// "4.2s", "59s", "2m05s", "1h02m", "3d04h".
std::string format_duration(double seconds);
/// "512 B", "1.50 KiB", "2.00 GiB".
std::string format_bytes(uint64_t bytes);

/// "31.2%", "0.0125%", "< 0.01%": a share with at most three significant digits.
std::string format_share(double share);

/// What a progress line shows.
struct ProgressState {
  int64_t step = 0, steps = 0;
  double loss = 0, learning_rate = 0, grad_norm = 0;
  double tokens_per_second = 0;
  double elapsed = 0;  ///< seconds of this process
  double eta = 0;      ///< seconds to the last step
  struct Gpu {
    double mfu = 0;        ///< share of the chip's dense bf16 rate that training's products use; 0: unknown
    double data_wait = 0;  ///< share of the time spent waiting for data
    uint64_t peak = 0;     ///< bytes of device memory
  };
  std::optional<Gpu> gpu;
  struct Ranks {
    int count = 0;
    double wait = 0;  ///< share of the time that a rank waits for others on the host, on the average
  };
  std::optional<Ranks> ranks;  ///< of several
};

/// "step 120/600  20%  loss 3.4567  lr 4.00e-03  norm 0.81  12.3k tok/s  1m02s  eta 4m08s".
std::string progress_line(const ProgressState& state);

/// Shows training's progress: on a terminal one line that updates in place, elsewhere one line per call.
/// The environment's NO_COLOR turns emphasis off.
class Progress {
 public:
  explicit Progress(bool quiet = false, console::Stream& out = console::err);
  ~Progress() { finish(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void update(const ProgressState& state);
  /// Prints `text` on lines of its own, above the updating line. Shown even if quiet.
  void message(const std::string& text);
  /// Ends the updating line, so that what is printed next starts on a fresh one.
  void finish();

 private:
  console::Stream& out_;
  bool quiet_, terminal_, color_;
  std::string shown_;  ///< what stands on the terminal's updating line
};

/// Shows on stderr how much of some work is done and the time left, once the work has taken two seconds: on a terminal
/// in one line that is updated twice a second, elsewhere as one line each half minute.
class ShareProgress {
 public:
  /// `what` names the work: "preparing".
  explicit ShareProgress(std::string what) : what_(std::move(what)) {}
  /// Ends the updating line.
  ~ShareProgress();
  ShareProgress(const ShareProgress&) = delete;
  ShareProgress& operator=(const ShareProgress&) = delete;

  /// `share` in [0, 1] is done; `note` is shown after it.
  void update(double share, const std::string& note = "");

 private:
  using Clock = std::chrono::steady_clock;
  std::string what_;
  const Clock::time_point start_ = Clock::now();
  double last_ = -1;  ///< when a line was shown, in seconds since the start
};

}  // namespace mmfree
