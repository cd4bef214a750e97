#pragma once

namespace mmfree {

/// While alive, SIGTERM, SIGUSR1, SIGHUP and the first SIGINT are noted instead of ending the process, so that the work
/// in hand can be finished and saved; a second SIGINT ends it at once with status 130. A SIGHUP that was ignored
/// (nohup) stays ignored. Several nest as one.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  /// The signal that asks to stop, or 0.
  static int pending();
};

/// Throws once a signal asks to stop, and says what becomes of the work if `the same command` is given again.
/// @throws Error with Exit::stopped
void throw_if_stopped(const char* again = "starts over");

/// Inside a StopSignals, while there is nothing to clean up and something that cannot be interrupted goes on: a signal
/// ends the process at once, with the message and the status of throw_if_stopped.
class LeaveAtOnce {
 public:
  LeaveAtOnce();
  ~LeaveAtOnce();
  LeaveAtOnce(const LeaveAtOnce&) = delete;
};

/// "SIGTERM" for a number that StopSignals handles.
const char* signal_name(int signal);

}  // namespace mmfree
