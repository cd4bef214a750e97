#include "train/inference/stop_text.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace mmfree {

StopTexts::StopTexts(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const std::string& s : stops_) MMFREE_CHECK(UsageError, !s.empty(), "--stop: a stop text must not be empty");
}

std::string StopTexts::push(std::string_view piece) {
  if (found_) return "";
  kept_ += piece;
  size_t end = std::string::npos, possible = 0;
  for (const std::string& s : stops_) {
    end = std::min(end, kept_.find(s));
    // The longest end of the text with which this stop text may begin.
    for (size_t n = std::min(s.size() - 1, kept_.size()); n > possible; --n)
      if (kept_.compare(kept_.size() - n, n, s, 0, n) == 0) possible = n;
  }
  found_ = end != std::string::npos;
  std::string certain = kept_.substr(0, found_ ? end : kept_.size() - possible);
  kept_.erase(0, found_ ? kept_.size() : certain.size());
  return certain;
}

std::string StopTexts::flush() { return std::exchange(kept_, ""); }

}  // namespace mmfree
