#include "train/formats/strict_json.h"

#include <set>
#include <vector>

#include "core/error.h"

namespace mmfree {

namespace {

constexpr int kMaxDepth = 16;
constexpr int64_t kMaxValues = 16'000'000;

/// Checks every event of the parser and throws at the first that exceeds a limit, before a deep value is built.
class Guard {
 public:
  explicit Guard(const std::string& where) : where_(where) {}

  bool operator()(int depth, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
    using Event = nlohmann::json::parse_event_t;
    MMFREE_CHECK(DataError, ++events_ <= kMaxValues, where_, ": JSON has more than ", kMaxValues, " values");
    if (event == Event::object_start || event == Event::array_start)
      MMFREE_CHECK(DataError, depth < kMaxDepth, where_, ": JSON is nested deeper than ", kMaxDepth, " levels");
    if (event == Event::object_start) keys_.emplace_back();
    if (event == Event::object_end) keys_.pop_back();
    if (event == Event::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      MMFREE_CHECK(DataError, keys_.back().insert(key).second, where_, ": JSON key ", quote(key), " appears twice");
    }
    return true;
  }

 private:
  const std::string& where_;
  std::vector<std::set<std::string>> keys_;  // of the open objects
  int64_t events_ = 0;
};

}  // namespace

nlohmann::json parse_json(std::string_view text, const std::string& where) {
  // The parser takes a zero byte as the end of its input and ignores what follows it.
  const size_t zero = text.find('\0');
  MMFREE_CHECK(DataError, zero == text.npos, where, ": not valid JSON at byte ", zero + 1);
  Guard guard(where);
  try {
    return nlohmann::json::parse(text, [&guard](int depth, nlohmann::json::parse_event_t event,
                                                nlohmann::json& parsed) { return guard(depth, event, parsed); });
  } catch (const nlohmann::json::parse_error& e) {
    throw DataError(concat(where, ": not valid JSON at byte ", e.byte));
  } catch (const nlohmann::json::exception&) {
    throw DataError(concat(where, ": JSON holds a number outside the range of a double"));
  }
}

}  // namespace mmfree
