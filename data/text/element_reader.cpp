#include "data/text/element_reader.h"

#include "core/error.h"

namespace mmfree {

void ElementReader::fail(const std::string& what) const {
  throw DataError(concat(source_.name(), ":", line_at_, ": byte ", column_at_, ": ", what, "; correct the file"));
}

/// The next character; '\0' at the end of the file, where ended_ is set.
char ElementReader::peek() {
  if (at_ == block_.size()) {
    at_ = 0;
    ended_ = !source_.next(&block_);
    if (ended_) return '\0';
  }
  return block_[at_];
}

void ElementReader::take() {
  const bool line_ends = block_[at_++] == '\n';
  line_at_ += line_ends;
  column_at_ = line_ends ? 1 : column_at_ + 1;
}

/// The next character that is not white space. A byte order mark that begins the file is taken for white space.
char ElementReader::peek_past_space() {
  for (;; take()) {
    const char c = peek();
    const bool in_mark = line_at_ == 1 && column_at_ <= 3 && c == "\xEF\xBB\xBF"[column_at_ - 1];
    if (c != ' ' && c != '\n' && c != '\r' && c != '\t' && !in_mark) return c;
  }
}

bool ElementReader::next(std::string* element) {
  element->clear();
  for (;;) {
    char c = peek_past_space();
    if (ended_) {
      if (in_array_) fail("the file ends inside an array");
      return false;
    }
    if (in_array_ && c == ']') {
      in_array_ = false;
      take();
    } else if (!in_array_ && c == '[') {
      in_array_ = first_ = true;
      take();
    } else {
      if (in_array_ && !first_) {
        if (c != ',') fail("expected ',' or ']' between elements, found " + quote({&c, 1}));
        take();
        peek_past_space();
      }
      first_ = false;
      line_ = line_at_, column_ = column_at_;
      copy(element);
      return true;
    }
  }
}

/// Copies up to the end of the value: of a string or a bracket that closes, else to the next mark or space.
void ElementReader::copy(std::string* element) {
  bool in_string = false, escaped = false;
  int64_t open = 0;
  for (;;) {
    const char c = peek();
    const bool closes = c == ']' || c == '}';
    if (ended_ && (in_string || open > 0)) fail("the file ends inside a value");
    if (!in_string && open == 0) {
      const bool outside = ended_ || closes || c == ',' || c == ' ' || c == '\n' || c == '\r' || c == '\t';
      if (outside && element->empty()) fail("expected a value, found " + (ended_ ? "the end" : quote({&c, 1})));
      if (outside) return;
    }
    element->push_back(c);
    take();
    if (int64_t(element->size()) > kMaxElementBytes)
      fail(concat("a value is longer than ", kMaxElementBytes, " bytes; split it"));
    if (in_string) {
      in_string = escaped || c != '"';
      escaped = !escaped && c == '\\';
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      ++open;
    } else if (closes) {
      --open;
    }
    if (!in_string && open == 0 && (c == '"' || closes)) return;
  }
}

}  // namespace mmfree
