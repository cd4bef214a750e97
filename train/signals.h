#pragma once

namespace mmfree {

/// While alive, SIGTERM, SIGUSR1 and the first SIGINT are noted instead of ending the process, so that the work in
/// hand can be finished and saved; a second SIGINT ends it at once with status 130. Several nest as one.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  /// The signal that asks to stop, or 0.
  static int pending();
};

/// "SIGTERM" for a number that StopSignals handles.
const char* signal_name(int signal);

}  // namespace mmfree
