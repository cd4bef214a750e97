#include "train/config/fields.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "core/error.h"

namespace mmfree {
namespace {

/// Parses all of `text` as a decimal number. Unlike YAML it accepts no octal, hexadecimal, infinite or NaN values, no
/// '+' and no leading zeros, because people misread those.
template <class T>
bool parse_number(std::string_view text, T& value) {
  const std::string_view digits = text.substr(!text.empty() && text[0] == '-');
  if (digits.size() > 1 && digits[0] == '0' && digits[1] >= '0' && digits[1] <= '9') return false;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) return false;
  if constexpr (std::is_floating_point_v<T>) return std::isfinite(value);
  return true;
}

bool plain(const ConfigNode& node) { return node.kind == ConfigNode::Kind::scalar && !node.quoted; }

std::string shortest(double value) {
  char buffer[32];
  return {buffer, std::to_chars(buffer, buffer + sizeof buffer, value).ptr};
}

void expected(const std::string& what, const ConfigNode& node, const std::string& path, Problems& problems) {
  problems.add(node.line, path, path + ": expected " + what + ", found " + node.describe());
}

/// Parses "2h30m" to seconds: numbers with units, larger units first.
bool parse_duration(std::string_view text, double& seconds) {
  seconds = 0;
  std::string_view units = "dhms";
  while (!text.empty()) {
    const size_t digits = std::min(text.find_first_not_of("0123456789"), text.size());
    double number = 0;
    if (digits == text.size() || !parse_number(text.substr(0, digits), number)) return false;
    const size_t unit = units.find(text[digits]);
    if (unit == std::string_view::npos) return false;
    const char name = units[unit];
    seconds += number * (name == 'd' ? 86400 : name == 'h' ? 3600 : name == 'm' ? 60 : 1);
    units.remove_prefix(unit + 1);
    text.remove_prefix(digits + 1);
  }
  return true;
}

/// Number of insertions, deletions, substitutions and swaps of neighbours that turn `a` into `b`.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i)
    for (size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        d[i][j] = i + j;
        continue;
      }
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  return d[a.size()][b.size()];
}

/// What other programs call a key of ours.
constexpr std::pair<const char*, const char*> kNamesElsewhere[] = {
    {"num_attention_heads", "heads"},    {"num_heads", "heads"},       {"n_heads", "heads"},
    {"num_key_value_heads", "kv_heads"}, {"num_kv_heads", "kv_heads"}, {"n_kv_heads", "kv_heads"},
    {"hidden_act", "activation"},        {"window", "sliding_window"}};

/// The key that was probably meant by `wrong`: the one that has this name elsewhere, a similar one of the same section,
/// or the same key of another section.
std::string suggestion(const std::string& wrong, const std::vector<std::string>& known) {
  constexpr size_t kLongestKey = 64;
  if (wrong.size() > kLongestKey) return {};
  for (const auto& [name, key] : kNamesElsewhere)
    if (wrong == name && std::find(known.begin(), known.end(), key) != known.end()) return key;
  std::string best;
  size_t least = std::max<size_t>(1, wrong.size() / 3) + 1;
  for (const std::string& key : known)
    if (const size_t distance = edit_distance(wrong, key); distance < least) {
      least = distance;
      best = key;
    }
  if (!best.empty()) return best;
  RunConfig any;
  all_fields(any, [&](const std::string& path, const auto&, const auto&, const char*) {
    if (path.substr(path.find('.') + 1) == wrong) best = path;
  });
  return best;
}

}  // namespace

void Integer::read(const ConfigNode& node, int64_t& value, const std::string& path, Problems& problems) const {
  int64_t number = 0;
  if (!plain(node) || !parse_number(node.text, number)) return expected("an integer", node, path, problems);
  if (number < least || number > most) return expected("an " + type(), node, path, problems);
  value = number;
}

void Integer::read(const ConfigNode& node, int& value, const std::string& path, Problems& problems) const {
  int64_t wide = value;
  read(node, wide, path, problems);
  value = static_cast<int>(wide);
}

std::string Integer::type() const {
  const bool bounded = most != std::numeric_limits<int64_t>::max();
  return bounded ? concat("integer in ", least, "..", most) : concat("integer >= ", least);
}

void Real::read(const ConfigNode& node, double& value, const std::string& path, Problems& problems) const {
  double number = 0;
  if (!plain(node) || !parse_number(node.text, number)) return expected("a number", node, path, problems);
  const bool above = open_below ? number > least : number >= least;
  const bool below = open_above ? number < most : number <= most;
  if (!above || !below) return expected("a " + type(), node, path, problems);
  value = number;
}

std::string Real::print(double value) const { return shortest(value); }

std::string Real::type() const {
  return concat("number in ", open_below ? "(" : "[", shortest(least), ", ", shortest(most), open_above ? ")" : "]");
}

void Seconds::read(const ConfigNode& node, double& value, const std::string& path, Problems& problems) const {
  constexpr double kMost = 1e9;
  double number = 0;
  if (!plain(node) || node.text.empty() || !(parse_number(node.text, number) || parse_duration(node.text, number)))
    return expected(type(), node, path, problems);
  if (number < 0 || number > kMost) return expected("0 to 1e9 seconds", node, path, problems);
  value = number;
}

void Flag::read(const ConfigNode& node, bool& value, const std::string& path, Problems& problems) const {
  if (!plain(node) || (node.text != "true" && node.text != "false")) return expected(type(), node, path, problems);
  value = node.text == "true";
}

void Text::read(const ConfigNode& node, std::string& value, const std::string& path, Problems& problems) const {
  if (node.kind != ConfigNode::Kind::scalar) return expected(type(), node, path, problems);
  if (node.text.empty() && !may_be_empty) return expected("text that is not empty", node, path, problems);
  if (!is_clean_text(node.text)) return expected("one line of UTF-8 text", node, path, problems);
  value = node.text;
}

std::string Text::print(const std::string& value) const {
  std::string text = "\"";
  for (char c : value) text += (c == '"' || c == '\\' ? "\\" : "") + std::string(1, c);
  return text + "\"";
}

void DeviceName::read(const ConfigNode& node, DeviceChoice& value, const std::string& path, Problems& problems) const {
  const bool text = node.kind == ConfigNode::Kind::scalar;
  const std::optional<DeviceChoice> choice = text ? parse_device(node.text) : std::nullopt;
  if (!choice) return expected(type(), node, path, problems);
  value = *choice;
}

void Resume::read(const ConfigNode& node, ResumeFrom& value, const std::string& path, Problems& problems) const {
  std::string text = name_of(value);
  Text{false}.read(node, text, path, problems);
  value = parse_resume(text);
}

void Steps::read(const ConfigNode& node, StepRange& value, const std::string& path, Problems& problems) const {
  const size_t dots = node.text.find("..");
  StepRange range;
  const bool numbers =
      plain(node) && parse_number(std::string_view(node.text).substr(0, dots), range.first) &&
      (dots == std::string::npos ? (range.last = range.first, true)
                                 : parse_number(std::string_view(node.text).substr(dots + 2), range.last));
  if (!numbers || range.first < 1 || range.last < range.first) return expected(type(), node, path, problems);
  value = range;
}

void Pair::read(const ConfigNode& node, std::array<double, 2>& values, const std::string& path,
                Problems& problems) const {
  if (node.kind != ConfigNode::Kind::list) return expected("a list of two numbers", node, path, problems);
  if (node.items.size() != 2)
    return problems.add(node.line, path, concat(path, ": expected two numbers, found ", node.items.size()));
  for (size_t i = 0; i < 2; ++i) item.read(node.items[i], values[i], concat(path, "[", i, "]"), problems);
}

Section::Section(const ConfigNode* node, std::string path, Problems& problems)
    : path_(std::move(path)), problems_(problems) {
  if (!node || node->reset || node->kind == ConfigNode::Kind::nothing) return;
  if (node->kind == ConfigNode::Kind::map) {
    map_ = node;
  } else {
    expected("keys with values", *node, path_.empty() ? "configuration" : path_, problems_);
  }
}

const ConfigNode* Section::take(const char* key) {
  known_.push_back(key);
  const ConfigNode* node = map_ ? map_->find(key) : nullptr;
  return node && !node->reset ? node : nullptr;
}

void Section::finish() const {
  if (!map_) return;
  for (const ConfigNode& item : map_->items) {
    if (std::find(known_.begin(), known_.end(), item.key) != known_.end()) continue;
    const size_t colon = item.key.find(':');
    const std::string meant = suggestion(item.key.substr(0, colon), known_);
    const std::string hint = meant.empty()                ? ""
                             : colon == std::string::npos ? " (did you mean '" + meant + "'?)"
                                                          : " (write '" + meant + ": ', with a space after the colon)";
    problems_.add(item.key_line, path_to(item.key), "unknown key " + quote(path_to(item.key)) + hint);
  }
}

}  // namespace mmfree
