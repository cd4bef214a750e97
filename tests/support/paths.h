#pragma once
#include <string>

/// Where the tests find what they need. The environment variables MMFREE_SOURCE_DIR and MMFREE_PROGRAM name other
/// places when they run from a bundle.
namespace mmfree {

/// The folder that holds configs/ and tests/.
std::string source_dir();
/// The built program.
std::string program_path();

}  // namespace mmfree
