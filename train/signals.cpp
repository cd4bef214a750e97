#include "train/signals.h"

#include <unistd.h>

#include <csignal>

namespace mmfree {
namespace {

volatile std::sig_atomic_t noted = 0;
constexpr int kSignals[] = {SIGTERM, SIGINT, SIGUSR1};
struct sigaction previous[3];
int alive = 0;

void note(int signal) {
  if (signal == SIGINT && noted == SIGINT) _exit(130);
  noted = signal;
}

}  // namespace

StopSignals::StopSignals() {
  if (alive++) return;
  noted = 0;
  struct sigaction action = {};
  action.sa_handler = note;
  action.sa_flags = SA_RESTART;
  for (int i = 0; i < 3; ++i) sigaction(kSignals[i], &action, &previous[i]);
}

StopSignals::~StopSignals() {
  if (--alive) return;
  for (int i = 0; i < 3; ++i) sigaction(kSignals[i], &previous[i], nullptr);
}

int StopSignals::pending() { return noted; }

const char* signal_name(int signal) { return signal == SIGTERM ? "SIGTERM" : signal == SIGINT ? "SIGINT" : "SIGUSR1"; }

}  // namespace mmfree
