#pragma once
#include <string>
#include <vector>

namespace mmfree {

/// Resolves files, directories (their files with one of `suffixes`, not recursive) and shell patterns, each sorted by
/// name, in the order given. A pattern has *, ?, [...] and \ within its components, none of which matches a hidden name
/// or a slash. @throws MissingError if an entry matches nothing, IoError if a folder cannot be listed
std::vector<std::string> expand_paths(const std::vector<std::string>& entries,
                                      const std::vector<std::string>& suffixes);

}  // namespace mmfree
