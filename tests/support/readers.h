#pragma once
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <termios.h>
#include <unistd.h>

#include <stdexcept>
#include <string>

#include "core/system/files.h"

namespace mmfree {

/// The two ends of a pipe or terminal of which the test is the reader. No child process inherits them.
class Reader {
 public:
  int writing_end() const { return to_.get(); }
  void close_writing_end() { to_.close(); }
  /// What was written and not yet read, or a part. Waits a moment for more: a terminal passes on later what it gets.
  std::string read() const {
    std::string all;
    char some[4096];
    for (pollfd p = {from_.get(), POLLIN, 0};
         all.size() < (1 << 16) && ::poll(&p, 1, 100) > 0 && (p.revents & POLLIN);) {
      const ssize_t n = ::read(from_.get(), some, sizeof some);
      if (n <= 0) break;
      all.append(some, size_t(n));
    }
    return all;
  }

 protected:
  Reader(int from, int to) : from_(from), to_(to) {
    for (const int fd : {from, to})
      if (::fcntl(fd, F_SETFD, FD_CLOEXEC) != 0) throw std::runtime_error("no pipe or terminal");
  }

 private:
  Fd from_, to_;
};

/// A pipe that takes no more until its reader reads; it holds this many bytes 'x'.
class FullPipe : public Reader {
 public:
  static constexpr int kBytes = 4096;
  FullPipe() : FullPipe(ends()) {
    if (::fcntl(writing_end(), F_SETPIPE_SZ, kBytes) != kBytes ||
        ::write(writing_end(), std::string(kBytes, 'x').data(), kBytes) != kBytes)
      throw std::runtime_error("the pipe cannot be filled");
  }

 private:
  struct Ends {
    int fd[2] = {-1, -1};
  };
  static Ends ends() {
    Ends e;
    (void)!::pipe(e.fd);
    return e;
  }
  explicit FullPipe(Ends e) : Reader(e.fd[0], e.fd[1]) {}
};

/// A terminal that passes on what it gets as it is.
class Terminal : public Reader {
 public:
  Terminal() : Terminal(open()) {
    termios mode;
    ::tcgetattr(writing_end(), &mode);
    ::cfmakeraw(&mode);
    ::tcsetattr(writing_end(), TCSANOW, &mode);
  }
  /// As Ctrl-S does.
  void stop() const { ::tcflow(writing_end(), TCOOFF); }
  void go_on() const { ::tcflow(writing_end(), TCOON); }

 private:
  struct Ends {
    int master = -1, slave = -1;
  };
  static Ends open() {
    Ends e;
    (void)!::openpty(&e.master, &e.slave, nullptr, nullptr, nullptr);
    return e;
  }
  explicit Terminal(Ends e) : Reader(e.master, e.slave) {}
};

}  // namespace mmfree
