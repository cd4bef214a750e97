#include "core/error.h"

#include <algorithm>
#include <cstring>

namespace mmfree {

std::string error_text(int error) {
  char buffer[256];
  return ::strerror_r(error, buffer, sizeof buffer);  // GNU's, which returns the message
}

std::string quote(std::string_view text) {
  constexpr size_t kShown = 80;
  std::string out = "'";
  for (size_t i = 0; i < std::min(text.size(), kShown); ++i) {
    const unsigned char c = static_cast<unsigned char>(text[i]);
    if (c >= 0x20 && c != 0x7F) {
      out += text[i];
    } else {
      const char* hex = "0123456789abcdef";
      out += {'\\', 'x', hex[c >> 4], hex[c & 15]};
    }
  }
  return out + (text.size() > kShown ? "...'" : "'");
}

}  // namespace mmfree
