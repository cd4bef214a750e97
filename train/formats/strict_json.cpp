#include "train/formats/strict_json.h"

#include <set>
#include <vector>

#include "core/error.h"

namespace mmfree {

namespace {

constexpr size_t kMaxDepth = 16;
constexpr int64_t kMaxValues = 16'000'000;

/// Checks every event of the parser and throws at the first that exceeds a limit. Builds no value. A text that is not
/// valid ends the events without a word.
class Guard final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit Guard(const std::string& where) : where_(where) {}

  bool null() override { return count(); }
  bool boolean(bool) override { return count(); }
  bool number_integer(number_integer_t) override { return count(); }
  bool number_unsigned(number_unsigned_t) override { return count(); }
  bool number_float(number_float_t, const string_t&) override { return count(); }
  bool string(string_t&) override { return count(); }
  bool binary(binary_t&) override { return count(); }
  bool start_object(size_t) override { return open(); }
  bool end_object() override { return close(); }
  bool start_array(size_t) override { return open(); }
  bool end_array() override { return close(); }
  bool key(string_t& key) override {
    MMFREE_CHECK(DataError, keys_.back().insert(key).second, where_, ": JSON key ", quote(key), " appears twice");
    return count();
  }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception&) override { return false; }

 private:
  bool count() {
    MMFREE_CHECK(DataError, ++events_ <= kMaxValues, where_, ": JSON has more than ", kMaxValues, " values");
    return true;
  }
  bool open() {
    MMFREE_CHECK(DataError, keys_.size() < kMaxDepth, where_, ": JSON is nested deeper than ", kMaxDepth, " levels");
    keys_.emplace_back();
    return count();
  }
  bool close() {
    keys_.pop_back();
    return count();
  }

  const std::string& where_;
  std::vector<std::set<std::string>> keys_;  // of the open objects; an array has none
  int64_t events_ = 0;
};

}  // namespace

nlohmann::json parse_json(std::string_view text, const std::string& where) {
  // The parser takes a zero byte as the end of its input and ignores what follows it.
  const size_t zero = text.find('\0');
  MMFREE_CHECK(DataError, zero == text.npos, where, ": not valid JSON at byte ", zero + 1);
  Guard guard(where);
  nlohmann::json::sax_parse(text, &guard);
  try {
    // Without a callback: with one, the parser walks an object's members again at the end of each of them.
    return nlohmann::json::parse(text);
  } catch (const nlohmann::json::parse_error& e) {
    throw DataError(concat(where, ": not valid JSON at byte ", e.byte));
  } catch (const nlohmann::json::exception&) {
    throw DataError(concat(where, ": JSON holds a number outside the range of a double"));
  }
}

}  // namespace mmfree
