#include "train/watch/screen.h"

#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>

#include "core/error.h"
#include "core/system/console.h"
#include "core/system/signals.h"

namespace mmfree {
namespace {

constexpr const char *kEnter = "\x1b[?1049h\x1b[?25l\x1b[?7l", *kLeave = "\x1b[?7h\x1b[?25h\x1b[?1049l";
volatile std::sig_atomic_t resized = 0;

void note_resize(int) { resized = 1; }

}  // namespace

TerminalSize terminal_size() {
  winsize size{};
  if (::ioctl(console::out.fd(), TIOCGWINSZ, &size) != 0 || size.ws_col == 0 || size.ws_row == 0) return {};
  return {size.ws_col, size.ws_row};
}

Screen::Screen() {
  struct sigaction change = {};
  change.sa_handler = note_resize;  // without SA_RESTART: it ends a wait
  ::sigaction(SIGWINCH, &change, nullptr);
  if (::tcgetattr(STDIN_FILENO, &before_) == 0) {
    termios keys = before_;
    keys.c_lflag &= ~tcflag_t(ICANON | ECHO);
    keys.c_cc[VSUSP] = _POSIX_VDISABLE;  // a stopped program would leave its screen to the shell
    keys.c_cc[VMIN] = 0, keys.c_cc[VTIME] = 0;
    reads_keys_ = ::tcsetattr(STDIN_FILENO, TCSANOW, &keys) == 0;
  }
  console::out.control(kEnter);
}

Screen::~Screen() {
  if (reads_keys_) ::tcsetattr(STDIN_FILENO, TCSANOW, &before_);
  std::signal(SIGWINCH, SIG_DFL);
  try {
    console::out.control(kLeave);
  } catch (const Error&) {  // the terminal is gone
  }
}

void Screen::show(const std::vector<std::string>& lines) {
  std::string frame = "\x1b[H";
  for (size_t i = 0; i < lines.size(); ++i) frame += (i ? "\r\n" : "") + lines[i] + "\x1b[K";
  console::out.control(frame + "\x1b[J");
}

Screen::Event Screen::wait(double seconds) {
  constexpr int kSlice = 100;  // a signal may come just before a wait begins
  for (int left = int(seconds * 1000); left > 0; left -= kSlice) {
    pollfd keys = {reads_keys_ ? STDIN_FILENO : -1, POLLIN, 0};
    const int ready = ::poll(&keys, 1, std::min(left, kSlice));
    if (StopSignals::pending()) return Event::quit;
    if (resized) {
      resized = 0;
      return Event::resized;
    }
    if (ready <= 0) continue;
    char key = 0;
    if (::read(STDIN_FILENO, &key, 1) != 1 && (keys.revents & POLLHUP)) return Event::quit;  // the terminal is gone
    if (key == 'q' || key == 'Q') return Event::quit;
  }
  return Event::time;
}

}  // namespace mmfree
