#include "tests/support/paths.h"

#include <cstdlib>

namespace mmfree {
namespace {

std::string from_environment(const char* variable, const char* built_in) {
  const char* value = std::getenv(variable);
  return value && *value ? value : built_in;
}

}  // namespace

std::string source_dir() { return from_environment("MMFREE_SOURCE_DIR", MMFREE_SOURCE_DIR); }
std::string program_path() { return from_environment("MMFREE_PROGRAM", MMFREE_PROGRAM); }

}  // namespace mmfree
