#include "train/watch/metrics_line.h"

#include <charconv>
#include <limits>

namespace mmfree {

MetricsLine::MetricsLine(std::string_view line) : rest_(line) {
  if (!take('{')) rest_ = "!";
}

void MetricsLine::skip_spaces() {
  while (!rest_.empty() && (rest_[0] == ' ' || rest_[0] == '\t' || rest_[0] == '\r')) rest_.remove_prefix(1);
}

bool MetricsLine::take(char c) {
  skip_spaces();
  if (rest_.empty() || rest_[0] != c) return false;
  rest_.remove_prefix(1);
  return true;
}

bool MetricsLine::quoted(std::string_view& content) {
  if (!take('"')) return false;
  for (size_t i = 0; i < rest_.size(); ++i) {
    if (rest_[i] == '\\') {
      ++i;
    } else if (rest_[i] == '"') {
      content = rest_.substr(0, i);
      rest_.remove_prefix(i + 1);
      return true;
    }
  }
  return false;
}

bool MetricsLine::number(double& value) {
  value = std::numeric_limits<double>::quiet_NaN();
  text_ = {};
  skip_spaces();
  for (const std::string_view word : {"null", "true", "false"})
    if (rest_.starts_with(word)) return rest_.remove_prefix(word.size()), true;
  if (rest_.starts_with('"')) return quoted(text_);
  const bool digit = !rest_.empty() && (rest_[0] == '-' || (rest_[0] >= '0' && rest_[0] <= '9'));
  if (!digit) return false;  // from_chars knows "inf" and "nan", JSON does not
  const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), value);
  if (error == std::errc::invalid_argument) return false;
  if (error == std::errc::result_out_of_range || !(value - value == 0))
    value = std::numeric_limits<double>::quiet_NaN();
  rest_.remove_prefix(size_t(end - rest_.data()));
  return true;
}

bool MetricsLine::next(std::string_view& key, double& value) {
  if (take('}')) {
    skip_spaces();
    whole_ = rest_.empty();
    rest_ = "!";
    return false;
  }
  if ((!first_ && !take(',')) || !quoted(key) || !take(':') || !number(value)) {
    rest_ = "!";
    return false;
  }
  first_ = false;
  return true;
}

}  // namespace mmfree
