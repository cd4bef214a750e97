#pragma once
#include <functional>
#include <string>

#include "core/error.h"

namespace mmfree {

/// Prints "mmfree: MESSAGE" on stderr, from any thread, as run_reporting prints an Error with that status.
void print_message(const std::string& message, Exit status);

/// Runs `body` as the main program. Prints an exception as one line on stderr (a ConfigError: one line per problem;
/// nothing if the message of an Error is empty, because another process prints it) and returns the exit status: that of
/// an Error, io or missing_input for a filesystem_error, else internal; ok without an exception. An exception that
/// leaves a noexcept function, for example because a destructor got no memory, is printed in the same way and ends the
/// process.
int run_reporting(const std::function<void()>& body);

}  // namespace mmfree
