#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mmfree {

/// The whole content of a regular file of at most `max_bytes`. @throws MissingError, DataError (too large), IoError
std::string read_file(const std::string& path, int64_t max_bytes);

/// Writes `bytes` to a temporary file beside `path`, syncs it and renames it over `path`.
/// @throws CreateError, IoError; the old file then stays as it was.
void write_file_atomically(const std::string& path, std::string_view bytes);

/// Resolves files, directories (their files with one of `suffixes`, not recursive) and glob patterns, each sorted by
/// name, in the order given. @throws MissingError if an entry matches nothing
std::vector<std::string> expand_paths(const std::vector<std::string>& entries,
                                      const std::vector<std::string>& suffixes);

/// Length in bytes of the valid UTF-8 character at the start of `s`: 0 if `s` is empty or starts with an invalid
/// sequence, -1 if `s` ends inside a character that is valid so far. Overlong forms and surrogates are invalid.
int utf8_char(std::string_view s);

/// Offset of the first byte of `s` that is not valid UTF-8, or npos.
size_t find_invalid_utf8(std::string_view s);

/// XXH3-64 of `bytes`.
uint64_t hash64(std::string_view bytes);
/// `value` as 16 hex digits.
std::string hex16(uint64_t value);

}  // namespace mmfree
