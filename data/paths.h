#pragma once
#include <string>
#include <vector>

namespace mmfree {

/// Replaces each entry by the files that it stands for, sorted by name: a file; a directory, for its files with one of
/// `suffixes` (not recursive); or a shell pattern with *, ?, [...] and \. A wildcard matches no slash and no leading
/// dot. The order of entries is kept. @throws MissingError if an entry matches nothing, IoError if a folder cannot be
/// listed
std::vector<std::string> expand_paths(const std::vector<std::string>& entries,
                                      const std::vector<std::string>& suffixes);

}  // namespace mmfree
