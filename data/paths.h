#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace mmfree {

/// Whether a name ends with `suffix`, which is in small letters; the name's own letters may be capitals.
bool has_suffix(std::string_view name, std::string_view suffix);

/// Replaces each entry by the files that it stands for, sorted by name: a file; a directory, for its files with one of
/// `suffixes` (not those of sub-directories: a run's shards do not change when a folder is put beside them); or a shell
/// pattern with *, ?, [...], \ and **, which stands for any number of directories. A wildcard matches no slash and no
/// leading dot. The order of entries is kept.
/// @throws MissingError if an entry matches nothing, IoError if a folder cannot be listed
std::vector<std::string> expand_paths(const std::vector<std::string>& entries,
                                      const std::vector<std::string>& suffixes);

/// As expand_paths, for collections of text. A directory stands for all files below it, hidden names left out; links
/// are followed, and each directory is read once. A pattern may match directories. "-" stays.
struct FoundFiles {
  FoundFiles(const std::vector<std::string>& entries, const std::vector<std::string>& suffixes);
  std::vector<std::string> files;
  std::vector<std::string> passed_over;  ///< in directories, or matched by a pattern, but without one of the suffixes
};

/// "passed over 3 files of other types: a.parquet, b.csv, ...": names at most a few; empty if there are none.
std::string passed_over_text(const std::vector<std::string>& files);

}  // namespace mmfree
