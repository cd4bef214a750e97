#pragma once
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace mmfree {

/// Process exit statuses. Values follow sysexits where one fits, so that job wrappers can act on them.
enum class Exit : int {
  ok = 0,
  internal = 1,        ///< a bug in mmfree, or a violated precondition
  usage = 2,           ///< wrong command line
  bad_data = 65,       ///< a file is damaged or of another kind than expected
  missing_input = 66,  ///< an input file does not exist or cannot be read
  lost = 69,           ///< another rank of the run ended or does not answer: run again to continue
  diverged = 70,       ///< loss or gradients stayed non-finite
  cannot_create = 73,  ///< an output cannot be created
  io = 74,             ///< read, write or sync failed (disk full, quota, device error)
  stopped = 75,        ///< stopped early on request: run again to continue from the checkpoint, or to start over
  bad_config = 78,     ///< the YAML configuration is invalid
};

/// Base of every exception mmfree throws. what() is one line: what, where, what was expected, what to do.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message, Exit status = Exit::internal)
      : std::runtime_error(message), status_(status) {}
  Exit status() const { return status_; }

 private:
  Exit status_;
};

struct ShapeError : Error {
  explicit ShapeError(const std::string& m) : Error(m) {}
};
struct DTypeError : Error {
  explicit DTypeError(const std::string& m) : Error(m) {}
};
struct DeviceError : Error {
  explicit DeviceError(const std::string& m) : Error(m) {}
};
struct UsageError : Error {
  explicit UsageError(const std::string& m) : Error(m, Exit::usage) {}
};
/// A device has not enough memory for an allocation.
struct OutOfMemory : Error {
  explicit OutOfMemory(const std::string& m) : Error(m) {}
};
struct DataError : Error {
  explicit DataError(const std::string& m) : Error(m, Exit::bad_data) {}
};
/// A file is damaged: its hash or its structure says so. No error of the system and no other kind of file is one.
struct DamagedError : DataError {
  using DataError::DataError;
};
/// A file of a version that this program does not know: a newer mmfree wrote it.
struct VersionError : DataError {
  using DataError::DataError;
};
struct MissingError : Error {
  explicit MissingError(const std::string& m) : Error(m, Exit::missing_input) {}
};
struct DivergedError : Error {
  explicit DivergedError(const std::string& m) : Error(m, Exit::diverged) {}
};
struct CreateError : Error {
  explicit CreateError(const std::string& m) : Error(m, Exit::cannot_create) {}
};
struct IoError : Error {
  explicit IoError(const std::string& m) : Error(m, Exit::io) {}
};
struct ConfigError : Error {
  explicit ConfigError(const std::string& m) : Error(m, Exit::bad_config) {}
};

/// Concatenates its arguments with operator<<. @throws std::bad_alloc
template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  out.exceptions(std::ios_base::badbit);  // without this, a failed allocation would cut the text silently
  (out << ... << parts);
  return out.str();
}

/// `text` in single quotes for a one-line message: control bytes as \\xNN, cut after 80 bytes. Not called `quoted`,
/// because argument-dependent lookup would find std::quoted.
std::string quote(std::string_view text);

/// The message for a value of errno. Unlike std::strerror it may be called from several threads.
std::string error_text(int error);

}  // namespace mmfree

/// Throws `ErrorType(concat(...))` unless `condition` holds. Always on; the parts are evaluated only on failure.
#define MMFREE_CHECK(ErrorType, condition, ...)                                 \
  do {                                                                          \
    if (!(condition)) throw ::mmfree::ErrorType(::mmfree::concat(__VA_ARGS__)); \
  } while (0)
