#include "data/text/json_scanner.h"

#include <array>

#include "core/error.h"
#include "core/system/utf8.h"

namespace mmfree {

namespace {

/// The bytes at which a string does not simply go on: quotes, backslashes and control characters.
constexpr auto kStops = [] {
  std::array<bool, 256> stops{};
  for (int c = 0; c < 0x20; ++c) stops[size_t(c)] = true;
  stops['"'] = stops['\\'] = true;
  return stops;
}();

bool is_digit(char c) { return c >= '0' && c <= '9'; }

void append_utf8(unsigned code, std::string* out) {
  const auto byte = [&](unsigned b) { out->push_back(char(b)); };
  if (code < 0x80) return byte(code);
  if (code < 0x800) return byte(0xC0 | code >> 6), byte(0x80 | (code & 0x3F));
  if (code < 0x10000)
    byte(0xE0 | code >> 12);
  else
    byte(0xF0 | code >> 18), byte(0x80 | (code >> 12 & 0x3F));
  byte(0x80 | (code >> 6 & 0x3F)), byte(0x80 | (code & 0x3F));
}

}  // namespace

char JsonScanner::peek() {
  for (; at_ < text_.size(); ++at_)
    if (const char c = text_[at_]; c != ' ' && c != '\n' && c != '\r' && c != '\t') return c;
  return '\0';
}

void JsonScanner::unexpected(std::string_view wanted) {
  const std::string_view rest = text_.substr(at_);
  const std::string found = rest.empty() ? "the end" : quote(rest.substr(0, size_t(utf8_char(rest))));
  throw Malformed{"not JSON", concat(": expected ", wanted, ", found ", found), at_};
}

void JsonScanner::expect(char c) {
  if (peek() != c) unexpected(quote({&c, 1}));
  ++at_;
}

void JsonScanner::enter(char open) {
  expect(open);
  if (++depth_ > kMaxDepth) throw Malformed{concat("nested more than ", kMaxDepth, " deep"), "", at_ - 1};
}

void JsonScanner::leave(char close) {
  if (peek() != close) unexpected(concat("',' or ", quote({&close, 1})));
  ++at_;
  --depth_;
}

void JsonScanner::string(std::string* out) {
  if (peek() != '"') unexpected("'\"'");
  const size_t begin = at_++;
  if (out) out->clear();
  for (;;) {
    const size_t from = at_;
    while (at_ < text_.size() && !kStops[static_cast<unsigned char>(text_[at_])]) ++at_;
    if (out) out->append(text_, from, at_ - from);
    if (at_ == text_.size()) throw Malformed{"not JSON", ": a string without its closing '\"'", begin};
    if (text_[at_] == '"') break;
    if (text_[at_] != '\\') throw Malformed{"not JSON", ": a control character inside a string must be escaped", at_};
    escape(out);
  }
  ++at_;
}

/// Four hexadecimal digits.
unsigned JsonScanner::hex4() {
  unsigned code = 0;
  for (int i = 0; i < 4; ++i, ++at_) {
    const char c = at_ < text_.size() ? text_[at_] : '\0';
    const int lower = c | 0x20;
    if (!is_digit(c) && (lower < 'a' || lower > 'f')) unexpected("4 hexadecimal digits after '\\u'");
    code = code * 16 + unsigned(is_digit(c) ? c - '0' : lower - 'a' + 10);
  }
  return code;
}

void JsonScanner::escape(std::string* out) {
  constexpr std::string_view kNames = "\"\\/bfnrt", kValues = "\"\\/\b\f\n\r\t";
  const size_t begin = at_++;
  unsigned code;
  if (at_ < text_.size() && text_[at_] == 'u') {
    ++at_;
    code = hex4();
    const bool high = code >= 0xD800 && code < 0xDC00;
    const auto lone = [&]() -> Malformed {
      return {"an escaped surrogate without its other half", concat(" (", text_.substr(begin, 6), ")"), begin};
    };
    if (code >= 0xDC00 && code < 0xE000) throw lone();
    if (high) {
      if (text_.substr(at_, 2) != "\\u") throw lone();
      at_ += 2;
      const unsigned low = hex4();
      if (low < 0xDC00 || low >= 0xE000) throw lone();
      code = 0x10000 + (code - 0xD800) * 0x400 + (low - 0xDC00);
    }
  } else {
    const size_t name = at_ < text_.size() ? kNames.find(text_[at_]) : kNames.npos;
    if (name == kNames.npos) unexpected("one of \"\\/bfnrtu after a backslash");
    code = static_cast<unsigned char>(kValues[name]);
    ++at_;
  }
  if (out) append_utf8(code, out);
}

void JsonScanner::digits() {
  if (at_ == text_.size() || !is_digit(text_[at_])) unexpected("a digit");
  while (at_ < text_.size() && is_digit(text_[at_])) ++at_;
}

std::string_view JsonScanner::number() {
  const auto next_is = [&](std::string_view any) { return at_ < text_.size() && any.find(text_[at_]) != any.npos; };
  const size_t begin = at();
  if (text_.substr(begin).starts_with("-I")) no_value();
  if (next_is("-")) ++at_;
  if (next_is("0"))
    ++at_;
  else
    digits();
  if (next_is(".")) ++at_, digits();
  if (next_is("eE")) {
    ++at_;
    if (next_is("+-")) ++at_;
    digits();
  }
  return text_.substr(begin, at_ - begin);
}

void JsonScanner::literal(std::string_view word) {
  if (!text_.substr(at_).starts_with(word)) no_value();
  at_ += word.size();
}

void JsonScanner::no_value() {
  for (const std::string_view word : {"NaN", "Infinity", "-Infinity"})
    if (text_.substr(at_).starts_with(word)) throw Malformed{"NaN and Infinity are not JSON", "", at_};
  unexpected("a value");
}

void JsonScanner::skip() {
  switch (const char c = peek()) {
    case '{':
      return items('{', '}', [&] { string(nullptr), expect(':'), skip(); });
    case '[':
      return items('[', ']', [&] { skip(); });
    case '"':
      return string(nullptr);
    case 't':
      return literal("true");
    case 'f':
      return literal("false");
    case 'n':
      return literal("null");
    default:
      if (c != '-' && !is_digit(c)) no_value();
      number();
  }
}

void JsonScanner::end() {
  peek();
  if (at_ != text_.size()) unexpected("nothing more");
}

}  // namespace mmfree
