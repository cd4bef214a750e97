#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace mmfree::console {

/// `text` as a terminal may be given it: control characters but \n and \t, invalid UTF-8 (each as \\x1b) and Unicode's
/// invisible or direction-changing controls (\\u{202e}) are spelled out.
std::string escaped(std::string_view text);

/// Standard output or standard error. Nothing else in the program writes to them. Each call writes at once.
/// What is printed goes to a pipe or file as it is, and to a terminal escaped.
class Stream {
 public:
  /// What becomes of output that nobody takes.
  enum class Stuck {
    waits,    ///< it waits until it is taken, or a signal asks to stop
    given_up  ///< it is dropped after two seconds or at a signal; when output flows again, a line says how much is lost
  };

  constexpr Stream(int fd, Stuck stuck) : fd_(fd), stuck_(stuck) {}
  Stream(const Stream&) = delete;
  int fd() const { return fd_; }
  void set_stuck(Stuck stuck) { stuck_ = stuck; }
  bool is_terminal() const;

  /// Writes text from anywhere. Allocates no memory. A stream that waits @throws IoError if it cannot be written to,
  /// Error with Exit::stopped; one that gives up counts such output as lost.
  void print(std::string_view text);
  /// Prints what std::printf would.
  void format(const char* format, ...) __attribute__((format(printf, 2, 3)));
  /// Writes bytes as they are, for control sequences of the program's own. Fails as print does.
  void control(std::string_view bytes);

 private:
  size_t send(std::string_view bytes);

  int fd_;
  Stuck stuck_;
  size_t lost_ = 0;       ///< bytes given up since output flowed last
  bool in_line_ = false;  ///< the last byte written ends no line
};

/// Results and generated text. Waits for its reader.
extern Stream out;
/// Progress, messages and errors.
extern Stream err;

}  // namespace mmfree::console
