#pragma once

namespace mmfree {

/// While alive, SIGTERM, SIGUSR1, SIGHUP and the first SIGINT are recorded instead of ending the process, so that the
/// current work can be finished and saved; a second SIGINT ends the process at once with status 130. A SIGHUP that was
/// ignored (nohup) stays ignored. Instances nest: the outermost one counts.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  /// The signal that asks to stop, or 0.
  static int pending();
};

/// Throws if a signal has asked to stop. `again` says what the same command does when it is given again.
/// @throws Error with Exit::stopped
void throw_if_stopped(const char* again = "starts over");

/// While alive inside a StopSignals, a signal ends the process at once, with the message and the status of
/// throw_if_stopped: for work that cannot be interrupted and leaves nothing to clean up.
class LeaveAtOnce {
 public:
  LeaveAtOnce();
  ~LeaveAtOnce();
  LeaveAtOnce(const LeaveAtOnce&) = delete;
};

/// "SIGTERM" for a number that StopSignals handles.
const char* signal_name(int signal);

}  // namespace mmfree
