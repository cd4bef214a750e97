#pragma once
#include <string>
#include <vector>

namespace mmfree {

/// Resolves files, directories (their files with one of `suffixes`, not recursive) and glob patterns, each sorted by
/// name, in the order given. @throws MissingError if an entry matches nothing
std::vector<std::string> expand_paths(const std::vector<std::string>& entries,
                                      const std::vector<std::string>& suffixes);

}  // namespace mmfree
