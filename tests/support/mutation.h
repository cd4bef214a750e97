#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace mmfree {

/// Damages bytes as disks, transfers and attackers do. The same seed gives the same damage.
class Mutator {
 public:
  explicit Mutator(uint64_t seed) : random_(seed) {}

  size_t below(size_t n) { return n ? size_t(random_() % n) : 0; }

  /// One to four changes of `bytes`; `other` is a second file from which ranges may come.
  std::string mutate(std::string bytes, std::string_view other) {
    for (size_t n = 1 + below(4); n > 0; --n) change(bytes, other);
    return bytes;
  }

 private:
  /// Mostly near the beginning, where headers are.
  size_t place(size_t size) {
    const size_t near[] = {64, 1024, 8192, size};
    return below(std::min(near[below(4)], size));
  }
  size_t length(size_t most) { return std::min(most, size_t(1) << below(12)); }

  void change(std::string& b, std::string_view other) {
    const size_t at = place(b.size()), left = b.size() - at;
    switch (below(10)) {
      case 0:
      case 1:
        if (left) b[at] = char(b[at] ^ (1 << below(8)));
        return;
      case 2:
        for (size_t i = at, n = length(left); n > 0; --n) b[i++] = char(random_());
        return;
      case 3:
        for (size_t n = length(64); n > 0; --n) b.insert(at, 1, char(random_()));
        return;
      case 4:
        b.erase(at, length(left));
        return;
      case 5: {
        const std::string range = b.substr(at, length(left));
        b.insert(place(b.size()), range);
        return;
      }
      case 6:
        return number(b, at);
      case 7:
        return word(b, at);
      case 8: {
        const size_t from = place(other.size()), n = length(std::min(left, other.size() - from));
        b.replace(at, n, other.substr(from, n));
        return;
      }
      default:
        if (below(4) == 0) b.resize(below(b.size() + 1));
        if (left) b[at] = char(random_());
    }
  }

  /// Overwrites 1, 2, 4 or 8 bytes with a number at which sums and products overflow.
  void number(std::string& b, size_t at) {
    const size_t width = size_t(1) << below(4);
    uint64_t value = uint64_t(1) << below(64);
    if (below(2)) value -= 1 + below(2);
    if (below(4) == 0) value = ~value;
    if (at + width <= b.size()) std::memcpy(&b[at], &value, width);
  }

  /// Inserts or overwrites with a piece of text that means something to one of the parsers.
  void word(std::string& b, size_t at) {
    static const std::string_view words[] = {"{",
                                             "}",
                                             "[",
                                             "]",
                                             "\"",
                                             ":",
                                             ",",
                                             "\n",
                                             "\n- ",
                                             " ",
                                             "&a",
                                             "*a",
                                             "<<: ",
                                             "!!x",
                                             "? ",
                                             "\xef\xbb\xbf",
                                             "\xff",
                                             "\0",
                                             "-1",
                                             "1e999",
                                             "nan",
                                             "\\u0000",
                                             "null",
                                             "true",
                                             "../../a",
                                             "18446744073709551616",
                                             "9223372036854775807",
                                             "\"text\":",
                                             "[[[[[[",
                                             "{\"a\":",
                                             "---\n",
                                             "...\n",
                                             "%YAML 9.9\n",
                                             "\"shape\":[",
                                             "data_offsets",
                                             "\xf0\x9f\xa6\x89",
                                             "|\n",
                                             "'"};
    const std::string_view w = words[below(std::size(words))];
    b.replace(at, below(2) ? std::min(w.size(), b.size() - at) : 0, w.empty() ? std::string_view("\0", 1) : w);
  }

  std::mt19937_64 random_;
};

}  // namespace mmfree
