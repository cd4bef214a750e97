#pragma once
#include <string>

/// What this machine is, for people to read. `at`: prefix of the paths /proc and /sys, for tests.
namespace mmfree {

/// The processor's name, such as "AMD EPYC 9654 96-Core Processor"; "unknown" where the system does not say.
std::string processor_name(const std::string& at = "");

/// When the system gives huge pages to programs that ask for them: "always", "madvise" or "never"; "unknown" where it
/// does not say.
std::string huge_pages(const std::string& at = "");

}  // namespace mmfree
