#pragma once
#include <functional>
#include <string>

namespace mmfree {

/// Prints "mmfree: MESSAGE" on stderr as run_reporting does, from any thread.
void print_message(const std::string& message);

/// Runs `body` as the main program. Prints an exception as one line on stderr (a ConfigError: one line per problem; nothing
/// if the message of an Error is empty, because another process prints it) and returns the exit status: that of an Error, io or missing_input for a filesystem_error, else internal; ok without an
/// exception. An exception that leaves a noexcept function, for example because a destructor got no memory, is printed
/// in the same way and ends the process.
int run_reporting(const std::function<void()>& body);

}  // namespace mmfree
