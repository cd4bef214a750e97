// Stop texts, in whatever pieces the text arrives.
#include <gtest/gtest.h>

#include "core/error.h"
#include "train/inference/stop_text.h"

namespace mmfree {
namespace {

/// The text up to its end, given in pieces of `size` bytes. Nothing that was returned is taken back.
std::string in_pieces(const std::string& text, const std::vector<std::string>& stops, size_t size, bool* found) {
  StopTexts s(stops);
  std::string out;
  for (size_t at = 0; at < text.size(); at += size) out += s.push(text.substr(at, size));
  out += s.flush();
  *found = s.found();
  return out;
}

TEST(StopTexts, EndTheTextWhereTheFirstOneBegins) {
  struct Case {
    std::string text;
    std::vector<std::string> stops;
    std::string expected;
  };
  for (const Case& c : std::vector<Case>{{"one two three", {"two"}, "one "},
                                         {"one two three", {"three", "two"}, "one "},
                                         {"aaab", {"aab"}, "a"},
                                         {"abababac", {"ababac"}, "ab"},
                                         {"xyz", {"x"}, ""},
                                         {"one ##", {"###"}, "one ##"},
                                         {"one #\n##", {"###"}, "one #\n##"},
                                         {"é水é", {"水"}, "é"},
                                         {"", {"a"}, ""},
                                         {"text", {}, "text"}}) {
    for (size_t size = 1; size <= c.text.size() + 1; ++size) {
      bool found = false;
      EXPECT_EQ(in_pieces(c.text, c.stops, size, &found), c.expected) << c.text << " by " << size;
      EXPECT_EQ(found, c.expected != c.text) << c.text;
    }
  }
  EXPECT_THROW(StopTexts({"a", ""}), UsageError);
}

TEST(StopTexts, KeepNoMoreThanMayBelongToOne) {
  StopTexts s({"abc", "bd"});
  EXPECT_EQ(s.push("xab"), "x");
  EXPECT_EQ(s.push("b"), "ab");
  EXPECT_EQ(s.push("e"), "be");
  EXPECT_EQ(s.push("ab"), "");
  EXPECT_EQ(s.flush(), "ab");
  EXPECT_FALSE(s.found());
}

}  // namespace
}  // namespace mmfree
