#include "train/run/signals.h"

#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstring>
#include <iterator>

#include "core/error.h"

namespace mmfree {
namespace {

// Handlers run in any thread, and threads ask.
std::atomic<int> noted = 0, interrupted = 0, leaves_at_once = 0, on_terminal = 0;
static_assert(std::atomic<int>::is_always_lock_free);
constexpr int kSignals[] = {SIGTERM, SIGINT, SIGUSR1, SIGHUP};
struct sigaction previous[std::size(kSignals)];
int alive = 0;

/// Only what is allowed in a signal handler.
[[noreturn]] void leave(int signal) {
  const char* const parts[] = {on_terminal ? "\n" : "", "mmfree: stopped by ", signal_name(signal),
                               "; the same command starts over", "\n"};
  for (const char* part : parts)
    if (write(2, part, std::strlen(part)) < 0) break;
  _exit(int(Exit::stopped));
}

void note(int signal) {
  if (leaves_at_once) leave(signal);
  if (signal == SIGINT && interrupted) _exit(130);
  if (signal == SIGINT) interrupted = 1;
  noted = signal;
}

}  // namespace

StopSignals::StopSignals() {
  if (alive++) return;
  noted = interrupted = 0;
  on_terminal = isatty(2);  // a handler may not ask
  struct sigaction action = {};
  action.sa_handler = note;
  action.sa_flags = SA_RESTART;
  for (size_t i = 0; i < std::size(kSignals); ++i) {
    sigaction(kSignals[i], &action, &previous[i]);
    // Who started the process wants it to outlive the terminal: nohup.
    if (kSignals[i] == SIGHUP && previous[i].sa_handler == SIG_IGN) std::signal(SIGHUP, SIG_IGN);
  }
}

StopSignals::~StopSignals() {
  if (--alive) return;
  for (size_t i = 0; i < std::size(kSignals); ++i) sigaction(kSignals[i], &previous[i], nullptr);
  noted = 0;  // whoever was asked to stop is gone
}

int StopSignals::pending() { return noted; }

void throw_if_stopped(const char* again) {
  if (noted) throw Error(concat("stopped by ", signal_name(noted), "; the same command ", again), Exit::stopped);
}

LeaveAtOnce::LeaveAtOnce() {
  leaves_at_once = 1;
  if (noted) leave(noted);
}

LeaveAtOnce::~LeaveAtOnce() { leaves_at_once = 0; }

const char* signal_name(int signal) {
  return signal == SIGTERM ? "SIGTERM" : signal == SIGINT ? "SIGINT" : signal == SIGHUP ? "SIGHUP" : "SIGUSR1";
}

}  // namespace mmfree
