#include "data/text/row_parser.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "core/error.h"
#include "core/system/utf8.h"

namespace mmfree {

namespace {

constexpr size_t kKeysNamed = 8;

/// What the value that the scanner sees is.
std::string kind_of(JsonScanner& row) {
  switch (row.peek()) {
    case '{':
      return "an object";
    case '[':
      return "a list";
    case '"':
      return "a string";
    case 't':
    case 'f':
      return "true or false";
    case 'n':
      return "null";
    default:
      return "a number";
  }
}

std::string named(const std::string& path) { return "\"" + path + "\""; }

}  // namespace

RowParser::RowParser(const TextOptions& options) : vocab_size_(options.vocab_size) {
  const std::string paths[kFields] = {options.text_field, "ids", "mask", "prompt", "completion", options.set_field};
  for (size_t i = 0; i < kFields; ++i) fields_[i].path = paths[i];
}

Document RowParser::parse(std::string_view row) {
  const size_t bad = find_invalid_utf8(row);
  if (bad != std::string_view::npos) {
    const auto byte = static_cast<unsigned char>(row[bad]);
    constexpr char kHex[] = "0123456789ABCDEF";
    throw Malformed{"not valid UTF-8", {' ', '(', kHex[byte >> 4], kHex[byte & 15], ')'}, bad};
  }
  for (Field& f : fields_) f.found = false, f.problem.reset(), f.text.clear(), f.numbers.clear();
  keys_.clear();
  JsonScanner scanner(row);
  if (scanner.peek() == '{') {
    members(scanner, "");
    scanner.end();
  } else {
    const size_t at = scanner.at();
    scanner.skip();
    scanner.end();
    throw Malformed{"not an object", "", at};
  }
  Document document;
  const auto has = [&](Name a, Name b) { return fields_[a].found || fields_[b].found; };
  if (fields_[kText].found)
    document.content = std::move(need(kText).text);
  else if (has(kIds, kMask))
    document.content = token_ids();
  else if (has(kPrompt, kCompletion))
    document.content = PromptedText{std::move(need(kPrompt).text), std::move(need(kCompletion).text)};
  else
    need(kText);
  document.set = std::move(fields_[kSet].text);
  if (document.set.find('\n') != std::string::npos)
    throw Malformed{named(fields_[kSet].path) + " has a line break", "", 0};
  return document;
}

bool RowParser::leads_to_a_field(const std::string& path) const {
  return std::any_of(fields_.begin(), fields_.end(), [&](const Field& f) {
    return f.path.size() > path.size() && f.path[path.size()] == '.' && f.path.starts_with(path);
  });
}

/// Reads the fields of an object; `parent` is its own path with a dot, or empty.
void RowParser::members(JsonScanner& row, const std::string& parent) {
  row.object([&](const std::string& key) {
    if (parent.empty() && keys_.size() < kKeysNamed) keys_.push_back(key);
    const std::string path = parent + key;
    for (size_t i = 0; i < kFields; ++i)
      if (fields_[i].path == path) return read(row, fields_[i], i == kIds || i == kMask);
    if (row.peek() == '{' && leads_to_a_field(path))
      members(row, path + ".");
    else
      row.skip();
  });
}

/// What a field holds counts only if the document is made of it, so that a problem is kept until this is known.
void RowParser::read(JsonScanner& row, Field& field, bool is_list) {
  const size_t at = row.at();
  if (std::exchange(field.found, true)) field.problem = {named(field.path) + " is given twice", "", at};
  if (is_list && row.peek() == '[') return row.array([&] { read_number(row, field); });
  if (!is_list && row.peek() == '"') return row.string(&field.text);
  if (!field.problem) field.problem = {concat(named(field.path), " is ", kind_of(row)), "", at};
  row.skip();
}

void RowParser::read_number(JsonScanner& row, Field& field) {
  const size_t at = row.at();
  const auto spoil = [&](const char* what) {
    if (!field.problem) field.problem = {named(field.path) + what, "", at};
  };
  if (const char c = row.peek(); c != '-' && (c < '0' || c > '9')) {
    spoil(" holds something else than integers");
    return row.skip();
  }
  const std::string_view digits = row.number();
  int32_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (end != digits.data() + digits.size())
    spoil(" holds a number that is not an integer");
  else if (error != std::errc())
    spoil(" holds a number above 2147483647");
  else if (value < 0)
    spoil(" holds a negative number");
  field.numbers.push_back(value);
}

RowParser::Field& RowParser::need(Name name) {
  Field& field = fields_[name];
  if (field.problem) throw *field.problem;
  if (field.found) return field;
  std::string keys;
  for (const std::string& key : keys_) keys += (keys.empty() ? " (it has " : ", ") + quote(key);
  if (!keys.empty()) keys += name == kText ? "; --text-field names the key of the text)" : ")";
  throw Malformed{"no " + named(field.path), keys, 0};
}

TokenIds RowParser::token_ids() {
  TokenIds tokens{std::move(need(kIds).numbers), {}};
  if (tokens.ids.empty()) throw Malformed{"\"ids\" is empty", "", 0};
  for (const int32_t id : tokens.ids)
    if (vocab_size_ > 0 && id >= vocab_size_)
      throw Malformed{"\"ids\" holds an id outside the tokenizer", concat(": ", id, ", it has ", vocab_size_), 0};
  if (!fields_[kMask].found) return tokens;
  const std::vector<int32_t>& mask = need(kMask).numbers;
  if (mask.size() != tokens.ids.size())
    throw Malformed{"\"mask\" has another length than \"ids\"", concat(": ", mask.size(), ", ", tokens.ids.size()), 0};
  if (std::any_of(mask.begin(), mask.end(), [](int32_t m) { return m > 1; }))
    throw Malformed{"\"mask\" holds a number that is neither 0 nor 1", "", 0};
  tokens.mask.assign(mask.begin(), mask.end());
  return tokens;
}

}  // namespace mmfree
