#pragma once
#include <cstddef>
#include <string_view>

namespace mmfree {

/// Length in bytes of the valid UTF-8 character at the start of `s`: 0 if `s` is empty or starts with an invalid
/// sequence, -1 if `s` ends inside a character that is valid so far. Overlong forms and surrogates are invalid.
int utf8_char(std::string_view s);

/// Offset of the first byte of `s` that is not valid UTF-8, or npos.
size_t find_invalid_utf8(std::string_view s);

}  // namespace mmfree
