#pragma once
#include <cstdlib>
#include <string>

/// Where the tests find what they need. The environment names other places when they run from a bundle.
namespace mmfree {

inline std::string from_environment(const char* variable, const char* built_in) {
  const char* value = std::getenv(variable);
  return value && *value ? value : built_in;
}

/// The folder that holds configs/ and tests/.
inline std::string source_dir() { return from_environment("MMFREE_SOURCE_DIR", MMFREE_SOURCE_DIR); }
/// The built program.
inline std::string program_path() { return from_environment("MMFREE_PROGRAM", MMFREE_PROGRAM); }

}  // namespace mmfree
