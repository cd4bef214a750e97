#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace mmfree {

/// What is wrong with a row of text.
struct Malformed {
  std::string cause;   ///< the same for all rows that are wrong in the same way
  std::string detail;  ///< of this row, to follow the cause; may be empty
  size_t byte = 0;     ///< offset in the row
};

/// Reads JSON (RFC 8259) from text in valid UTF-8, piece by piece, in time linear in its size. Nothing is built: a
/// value that nobody asks for is checked and passed over. @throws Malformed
class JsonScanner {
 public:
  static constexpr int kMaxDepth = 32;

  /// A byte order mark before the value is passed over.
  explicit JsonScanner(std::string_view text) : text_(text), at_(text.starts_with("\xEF\xBB\xBF") ? 3 : 0) {}

  /// The first character of the next value or mark; '\0' at the end.
  char peek();
  /// Offset of what `peek` sees.
  size_t at() { return peek(), at_; }

  /// Calls member(key) at each value of an object; it must read or skip that value.
  template <class Member>
  void object(const Member& member) {
    items('{', '}', [&] {
      std::string key;
      string(&key);
      expect(':');
      member(key);
    });
  }
  /// Calls element() at each value of an array; it must read or skip that value.
  template <class Element>
  void array(const Element& element) {
    items('[', ']', element);
  }
  /// Stores a string without its escapes; null: checks it only.
  void string(std::string* out);
  /// A number as it is written.
  std::string_view number();
  /// Passes over a value of any kind.
  void skip();
  /// Nothing may follow.
  void end();

 private:
  template <class Item>
  void items(char open, char close, const Item& item) {
    enter(open);
    if (peek() != close) {
      item();
      while (peek() == ',') {
        ++at_;
        item();
      }
    }
    leave(close);
  }
  void enter(char open);
  void leave(char close);
  void expect(char c);
  void literal(std::string_view word);
  void digits();
  void escape(std::string* out);
  unsigned hex4();
  [[noreturn]] void no_value();
  [[noreturn]] void unexpected(std::string_view wanted);

  std::string_view text_;
  size_t at_;
  int depth_ = 0;
};

}  // namespace mmfree
