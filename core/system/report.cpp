#include "core/system/report.h"

#include <unistd.h>

#include <cstdio>
#include <exception>
#include <filesystem>
#include <new>
#include <utility>

#include "core/error.h"
#include "core/system/console.h"
#include "core/system/files.h"

namespace mmfree {
namespace {

/// Prints a line without allocating memory. Control characters are spelled out whatever takes the line, because a name
/// in the message may hold any byte. `several`: line breaks are kept, for the list of a configuration's problems.
void say(const char* message, const char* rest = "", bool several = false) {
  char out[4096];
  size_t n = 0;
  const auto put = [&](const char* text) {
    for (; *text; ++text) {
      const auto c = static_cast<unsigned char>(*text);
      const bool inside_character = (c & 0xC0) == 0x80;
      if (n + (inside_character ? 4 : 8) >= sizeof out) console::err.print({out, std::exchange(n, 0)});
      if ((c < 0x20 || c == 0x7F) && !(several && c == '\n'))
        n += size_t(std::snprintf(out + n, 5, "\\x%02x", c));
      else
        out[n++] = *text;
    }
  };
  put("mmfree: ");
  put(message);
  put(rest);
  out[n++] = '\n';
  console::err.print({out, n});
}

/// `message` of an error with this status.
void say_error(const char* message, Exit status) { say(message, "", status == Exit::bad_config); }

/// Prints the exception that is being handled and returns the exit status.
int report() {
  try {
    throw;
  } catch (const Error& e) {
    if (*e.what()) say_error(e.what(), e.status());
    return int(e.status());
  } catch (const std::filesystem::filesystem_error& e) {
    say(e.what());
    return int(leads_nowhere(e.code()) ? Exit::missing_input : Exit::io);
  } catch (const std::bad_alloc&) {
    say("out of memory");
  } catch (const std::exception& e) {
    say("internal error: ", e.what());
  }
  return int(Exit::internal);
}

/// The terminate handler. Libraries allocate in destructors and in noexcept functions, where bad_alloc ends up here.
[[noreturn]] void end() {
  if (std::current_exception()) _exit(report());
  say("internal error: terminated without an exception; out of memory?");
  _exit(int(Exit::internal));
}

}  // namespace

void print_message(const std::string& message, Exit status) { say_error(message.c_str(), status); }

int run_reporting(const std::function<void()>& body) {
  std::set_terminate(end);
  try {
    body();
    return int(Exit::ok);
  } catch (...) {
    return report();
  }
}

}  // namespace mmfree
