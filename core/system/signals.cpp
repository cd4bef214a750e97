#include "core/system/signals.h"

#include <poll.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstring>
#include <iterator>

#include "core/error.h"

namespace mmfree {
namespace {

// Handlers run in any thread, and any thread reads.
std::atomic<int> pending_signal = 0, interrupted = 0, leaves_at_once = 0, on_terminal = 0;
static_assert(std::atomic<int>::is_always_lock_free);
constexpr int kSignals[] = {SIGTERM, SIGINT, SIGUSR1, SIGHUP};
struct sigaction previous[std::size(kSignals)];
int alive = 0;

/// Calls only what POSIX allows in a signal handler. Says nothing to a reader who is stuck.
[[noreturn]] void leave(int signal) {
  const char* const parts[] = {on_terminal ? "\n" : "", "mmfree: stopped by ", signal_name(signal),
                               "; the same command starts over", "\n"};
  for (const char* part : parts)
    if (pollfd room = {2, POLLOUT, 0}; poll(&room, 1, 0) <= 0 || write(2, part, std::strlen(part)) < 0) break;
  _exit(int(Exit::stopped));
}

void note(int signal) {
  if (leaves_at_once) leave(signal);
  if (signal == SIGINT && interrupted) _exit(130);
  if (signal == SIGINT) interrupted = 1;
  pending_signal = signal;
}

}  // namespace

StopSignals::StopSignals() {
  if (alive++) return;
  pending_signal = interrupted = 0;
  on_terminal = isatty(2);  // a handler may not ask
  struct sigaction action = {};
  action.sa_handler = note;
  action.sa_flags = SA_RESTART;
  for (size_t i = 0; i < std::size(kSignals); ++i) {
    sigaction(kSignals[i], &action, &previous[i]);
    // Under nohup the process is meant to outlive the terminal.
    if (kSignals[i] == SIGHUP && previous[i].sa_handler == SIG_IGN) std::signal(SIGHUP, SIG_IGN);
  }
}

StopSignals::~StopSignals() {
  if (--alive) return;
  for (size_t i = 0; i < std::size(kSignals); ++i) sigaction(kSignals[i], &previous[i], nullptr);
  pending_signal = 0;  // the signal was for the work that ends here
}

int StopSignals::pending() { return pending_signal; }

void throw_if_stopped(const char* again) {
  if (pending_signal)
    throw Error(concat("stopped by ", signal_name(pending_signal), "; the same command ", again), Exit::stopped);
}

LeaveAtOnce::LeaveAtOnce() {
  leaves_at_once = 1;
  if (pending_signal) leave(pending_signal);
}

LeaveAtOnce::~LeaveAtOnce() { leaves_at_once = 0; }

const char* signal_name(int signal) {
  return signal == SIGTERM ? "SIGTERM" : signal == SIGINT ? "SIGINT" : signal == SIGHUP ? "SIGHUP" : "SIGUSR1";
}

}  // namespace mmfree
