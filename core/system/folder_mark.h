#pragma once
#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mmfree {

/// A mark proves which files of a folder this program wrote: only these may be replaced or removed. It is the file
/// ".mmfree-KIND" in the folder: a line "mmfree KIND 1", a line "HASH  NAME" for each file, and 16 hex digits of
/// XXH3-64 of the lines before.
///
/// Names and hashes of files. A name may have several hashes: a mark is written before its files, and until they are
/// there the older ones are proven too.
using MarkedFiles = std::set<std::pair<std::string, std::string>>;

/// The hash of a file that grows: any content of it is proven.
inline constexpr const char* kAnyContent = "-";

/// The mark's name in a folder.
std::string mark_name(const std::string& kind);

/// XXH3-128 as 32 hex digits, of bytes and of a file. @throws MissingError, IoError, DataError if it is no regular file
std::string content_hash(std::string_view bytes);
std::string hash_of_file(const std::string& path);

/// What the mark of a folder names; empty without a mark. @throws CreateError if it is damaged or no mark, IoError
MarkedFiles read_mark(const std::string& folder, const std::string& kind);
/// Writes the mark as a DurableFile. @throws CreateError, IoError
void write_mark(const std::string& folder, const std::string& kind, const MarkedFiles& files);

/// Those of `names` that are in the folder, with their hashes by `hash_of`, which throws DataError for a file that is
/// none of ours. @throws CreateError naming the first one that is not a regular file, that the mark does not name, or
/// that has another hash; or the mark, if it is damaged; IoError, MissingError if one cannot be read
MarkedFiles require_marked(const std::string& folder, const std::string& kind, const std::vector<std::string>& names,
                           const std::function<std::string(const std::string& path)>& hash_of = hash_of_file);

/// Checks that a file may be written to `path`: nothing is there, or `overwrite` is set and `prove` returns, which
/// reads what is there as a file of ours. @throws CreateError, and what `prove` throws besides DataError
void require_replaceable(const std::string& path, bool overwrite, const std::function<void()>& prove);

}  // namespace mmfree
