#include "core/system/utf8.h"

#include <cstdint>
#include <cstring>

namespace mmfree {

int utf8_char(std::string_view s) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(s[i]); };
  if (s.empty()) return 0;
  const unsigned first = byte(0);
  if (first < 0x80) return 1;
  const int length = first >= 0xC2 && first < 0xE0   ? 2
                     : first >= 0xE0 && first < 0xF0 ? 3
                     : first >= 0xF0 && first < 0xF5 ? 4
                                                     : 0;
  for (int i = 1; i < length; ++i) {
    if (size_t(i) == s.size()) return -1;
    const unsigned low = i > 1 ? 0x80 : first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
    const unsigned high = i > 1 ? 0xBF : first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    if (byte(size_t(i)) < low || byte(size_t(i)) > high) return 0;
  }
  return length;
}

size_t find_invalid_utf8(std::string_view s) {
  constexpr uint64_t kHighBits = 0x8080808080808080;
  for (size_t at = 0; at < s.size();) {
    uint64_t eight = kHighBits;
    if (s.size() - at >= sizeof eight) std::memcpy(&eight, s.data() + at, sizeof eight);
    if ((eight & kHighBits) == 0) {  // eight ASCII characters
      at += sizeof eight;
      continue;
    }
    const int n = utf8_char(s.substr(at));
    if (n <= 0) return at;
    at += size_t(n);
  }
  return std::string_view::npos;
}

}  // namespace mmfree
