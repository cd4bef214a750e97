#include <gtest/gtest.h>

#include <string>

#include "core/error.h"
#include "train/formats/strict_json.h"

namespace mmfree {
namespace {

std::string refusal(const std::string& text) {
  try {
    parse_json(text, "f");
    return {};
  } catch (const DataError& e) {
    return e.what();
  }
}

std::string nested(const std::string& open, const std::string& inner, const std::string& close, int levels) {
  std::string before, after;
  for (int i = 0; i < levels; ++i) before += open, after += close;
  return before + inner + after;
}

TEST(StrictJson, gives_the_values) {
  const nlohmann::json json = parse_json(R"({"a": [1, -2, 0.5, null, true, "x"], "b": {"a": {}}})", "f");
  EXPECT_EQ(json.dump(), R"({"a":[1,-2,0.5,null,true,"x"],"b":{"a":{}}})");
}

TEST(StrictJson, refuses_with_one_line_that_names_the_file) {
  EXPECT_EQ(refusal(R"({"a": 1, "b": [{"a": 1}], "a": 2})"), "f: JSON key 'a' appears twice");
  EXPECT_EQ(refusal(R"([{"b": {"c": 1, "c": 1}}, {"b": 1}])"), "f: JSON key 'c' appears twice");
  EXPECT_EQ(refusal(R"([{"a": 1}, {"a": 1}])"), "");
  for (const auto& [open, close] : {std::pair("[", "]"), {"{\"a\":", "}"}}) {
    EXPECT_EQ(refusal(nested(open, "1", close, 16)), "");
    EXPECT_EQ(refusal(nested(open, "1", close, 17)), "f: JSON is nested deeper than 16 levels");
    EXPECT_EQ(refusal(nested(open, "", "", 100'000)), "f: JSON is nested deeper than 16 levels");
  }
  EXPECT_EQ(refusal("[1e999]"), "f: JSON holds a number outside the range of a double");
  EXPECT_EQ(refusal("{\"a\": 1"), "f: not valid JSON at byte 8");
  EXPECT_EQ(refusal("[1, 2] 3"), "f: not valid JSON at byte 8");
  EXPECT_EQ(refusal("[\"\xff\"]"), "f: not valid JSON at byte 3");
  EXPECT_EQ(refusal(std::string("[]\0", 3)), "f: not valid JSON at byte 3");
}

TEST(StrictJson, holds_at_most_16_million_values) {
  std::string list = "[1";
  for (int i = 0; i < 16'000'000; ++i) list += ",1";
  EXPECT_EQ(refusal(list + "]"), "f: JSON has more than 16000000 values");
}

/// A parser that looks through the members again at the end of each would need minutes.
TEST(StrictJson, many_objects_cost_no_more_each_than_few) {
  std::string text = "{";
  for (int i = 0; i < 200'000; ++i) text += concat(i ? "," : "", "\"", i, "\":{\"a\":[]}");
  EXPECT_EQ(parse_json(text + "}", "f").size(), 200'000u);
}

}  // namespace
}  // namespace mmfree
