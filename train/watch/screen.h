#pragma once
#include <termios.h>

#include <string>
#include <vector>

namespace mmfree {

/// The terminal's second screen, on standard output, with keys read from standard input as they are pressed. The
/// destructor gives the first one back as it was.
class Screen {
 public:
  Screen();
  ~Screen();
  Screen(const Screen&) = delete;
  /// Shows `lines`, which fit into the terminal, in place of what was there.
  void show(const std::vector<std::string>& lines);
  enum class Event { time, resized, quit };
  /// Waits for `seconds`, a change of the terminal's size, the key q, or a signal that asks to stop.
  Event wait(double seconds);

 private:
  bool reads_keys_ = false;
  termios before_ = {};
};

/// Columns and rows of the terminal on standard output; 80 x 24 if it does not tell.
struct TerminalSize {
  size_t columns = 80, rows = 24;
};
TerminalSize terminal_size();

}  // namespace mmfree
