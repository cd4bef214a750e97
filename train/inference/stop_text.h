#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace mmfree {

/// Finds the end of a text that arrives in pieces: the first place where one of several stop texts begins.
class StopTexts {
 public:
  /// @throws UsageError for an empty stop text
  explicit StopTexts(std::vector<std::string> stops);
  /// Adds a piece. Returns what is certain to stand before any stop text; the rest is kept.
  std::string push(std::string_view piece);
  /// Whether a stop text has come. What follows it is dropped.
  bool found() const { return found_; }
  /// Ends the text. Returns what was kept.
  std::string flush();

 private:
  std::vector<std::string> stops_;
  std::string kept_;
  bool found_ = false;
};

}  // namespace mmfree
