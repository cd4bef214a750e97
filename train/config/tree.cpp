#include "train/config/tree.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <climits>
#include <optional>
#include <sstream>

#include "core/error.h"
#include "core/system/utf8.h"

namespace mmfree {
namespace {

constexpr size_t kMaxBytes = 1 << 20, kMaxDepth = 32, kMaxNodes = 20000, kMaxReported = 100;
constexpr const char* kNoAliases = "aliases (*name) are not supported; quote text that starts with *";

/// Thrown in the parser's callbacks at a construct that a configuration may not contain.
struct Refused {
  int line;
  std::string message;
};

/// Builds the tree from the parser's events, and refuses hostile documents while it does.
class TreeBuilder : public YAML::EventHandler {
 public:
  TreeBuilder(Problems& problems, bool command_line) : problems_(problems), command_line_(command_line) {}

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnAnchor(const YAML::Mark& mark, const std::string&) override {
    refuse(mark, "anchors (&name) are not supported; quote text that starts with &");
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override { refuse(mark, kNoAliases); }
  void OnNull(const YAML::Mark& mark, YAML::anchor_t) override {
    place(mark, node(mark, "?", ConfigNode::Kind::nothing));
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t, const std::string& text) override {
    ConfigNode scalar = node(mark, tag, ConfigNode::Kind::scalar);
    scalar.text = text;
    scalar.quoted = tag == "!";
    place(mark, std::move(scalar));
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {
    open(mark, node(mark, tag, ConfigNode::Kind::list));
  }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t, YAML::EmitterStyle::value) override {
    open(mark, node(mark, tag, ConfigNode::Kind::map));
  }
  void OnSequenceEnd() override { close(); }
  void OnMapEnd() override { close(); }

  ConfigNode root;

 private:
  /// A list or map whose end the parser has not reached.
  struct Open {
    ConfigNode node;
    bool has_key = false;  ///< a key was read and its value comes next
    std::string key;
    int key_line = 0;
  };

  int line_of(const YAML::Mark& mark) const { return command_line_ ? 0 : mark.line + 1; }

  [[noreturn]] void refuse(const YAML::Mark& mark, const std::string& message) const {
    throw Refused{line_of(mark), message};
  }

  ConfigNode node(const YAML::Mark& mark, const std::string& tag, ConfigNode::Kind kind) {
    // The parser reports "?" for untagged values and "!" for quoted ones.
    if (tag != "?" && tag != "!") refuse(mark, "tags (" + quote(tag) + ") are not supported");
    if (++nodes_ > kMaxNodes) refuse(mark, concat("more than ", kMaxNodes, " values"));
    ConfigNode made;
    made.kind = kind;
    made.line = line_of(mark);
    return made;
  }

  void open(const YAML::Mark& mark, ConfigNode container) {
    if (open_.size() >= kMaxDepth) refuse(mark, concat("nested deeper than ", kMaxDepth, " levels"));
    if (expects_key())
      refuse(mark, "a key must be plain text, found " + container.describe() + " (is a bracket left open?)");
    open_.push_back({std::move(container), false, {}, 0});
  }

  void close() {
    ConfigNode done = std::move(open_.back().node);
    open_.pop_back();
    attach(std::move(done));
  }

  bool expects_key() const {
    return !open_.empty() && open_.back().node.kind == ConfigNode::Kind::map && !open_.back().has_key;
  }

  void place(const YAML::Mark& mark, ConfigNode value) {
    if (!expects_key()) return attach(std::move(value));
    if (value.kind != ConfigNode::Kind::scalar) refuse(mark, "a key must be plain text, found " + value.describe());
    if (value.text == "<<") refuse(mark, "merge keys (<<) are not supported");
    Open& map = open_.back();
    map.has_key = true;
    map.key = value.text;
    map.key_line = value.line;
  }

  void attach(ConfigNode value) {
    if (open_.empty()) {
      root = std::move(value);
      return;
    }
    Open& parent = open_.back();
    if (parent.node.kind == ConfigNode::Kind::map) {
      parent.has_key = false;
      if (const ConfigNode* first = parent.node.find(parent.key)) {
        const std::string where = command_line_ ? "" : concat(" (first in line ", first->key_line, ")");
        problems_.add(parent.key_line, "", "duplicate key " + quote(parent.key) + where);
        return;
      }
      value.key = parent.key;
      value.key_line = parent.key_line;
    }
    parent.node.items.push_back(std::move(value));
  }

  Problems& problems_;
  bool command_line_;
  size_t nodes_ = 0;
  std::vector<Open> open_;
};

/// The parser's message without quotations from the file, which may hold control characters and incomplete UTF-8.
std::string describe(const YAML::Exception& error) {
  if (error.msg.starts_with(YAML::ErrorMsg::UNKNOWN_ANCHOR)) return kNoAliases;
  if (error.msg.starts_with(YAML::ErrorMsg::INVALID_ESCAPE))
    return "not valid YAML: unknown escape character in double quotes; write \\ for a backslash";
  return "not valid YAML: " + error.msg;
}

/// Whether a colon is followed by something other than a space: YAML then reads the colon as part of the word.
bool lacks_space_after_colon(std::string_view text) {
  for (size_t at = text.find(':'); at != std::string_view::npos; at = text.find(':', at + 1))
    if (at + 1 < text.size() && text[at + 1] != ' ') return true;
  return false;
}

/// The YAML document in `text`; nullopt, and a problem, if it is invalid. `override_text`: the override whose value
/// `text` is; empty for a file.
std::optional<ConfigNode> parse_yaml(const std::string& text, const std::string& override_text, Problems& problems) {
  const bool command_line = !override_text.empty();
  TreeBuilder builder(problems, command_line), second(problems, command_line);
  try {
    std::istringstream in(text);
    YAML::Parser parser(in);
    if (!parser.HandleNextDocument(builder)) builder.root.kind = ConfigNode::Kind::map;
    if (!parser.HandleNextDocument(second)) return std::move(builder.root);
    problems.add(second.root.line, "", "a second YAML document; a configuration is one document");
  } catch (const Refused& refused) {
    problems.add(refused.line, "", refused.message);
  } catch (const YAML::Exception& error) {
    if (!command_line)
      problems.add(std::max(error.mark.line, 0) + 1, "", describe(error));
    else
      problems.add(0, "",
                   concat(quote(override_text), ": ", describe(error),
                          lacks_space_after_colon(text) ? "; write a space after each colon, as in {a: 1}" : ""));
  }
  return std::nullopt;
}

}  // namespace

const ConfigNode* ConfigNode::find(std::string_view name) const {
  const auto at = std::find_if(items.begin(), items.end(), [&](const ConfigNode& item) { return item.key == name; });
  return at == items.end() ? nullptr : &*at;
}

std::string ConfigNode::describe() const {
  if (kind == Kind::nothing) return "nothing";
  if (kind == Kind::list) return "a list";
  if (kind == Kind::map) return "a map";
  return (quoted ? "quoted " : "") + quote(text);
}

bool is_clean_text(std::string_view text, std::string_view allowed) {
  const auto forbidden = [&](char c) {
    return (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) && allowed.find(c) == std::string_view::npos;
  };
  return find_invalid_utf8(text) == std::string_view::npos && std::none_of(text.begin(), text.end(), forbidden);
}

void Problems::add(int line, const std::string& path, const std::string& message) {
  problems_.push_back({line, path, message});
}

bool Problems::failed(std::string_view path) const {
  return std::any_of(problems_.begin(), problems_.end(), [&](const Problem& problem) {
    const std::string& p = problem.path;
    return p.compare(0, path.size(), path) == 0 &&
           (p.size() == path.size() || p[path.size()] == '.' || p[path.size()] == '[');
  });
}

void Problems::throw_if_any() const {
  if (problems_.empty()) return;
  std::vector<Problem> sorted = problems_;
  const auto rank = [](const Problem& p) { return p.line == 0 ? INT_MAX : p.line; };
  std::stable_sort(sorted.begin(), sorted.end(), [&](const Problem& a, const Problem& b) { return rank(a) < rank(b); });
  std::string report;
  for (size_t i = 0; i < std::min(sorted.size(), kMaxReported); ++i) {
    const Problem& p = sorted[i];
    const std::string where = p.line == 0 ? "command line" : p.line > 0 ? concat(source_, ":", p.line) : source_;
    report += (report.empty() ? "" : "\n") + where + ": " + p.message;
  }
  if (sorted.size() > kMaxReported) report += concat("\n", source_, ": and ", sorted.size() - kMaxReported, " more");
  throw ConfigError(report);
}

ConfigNode parse_config_tree(const std::string& text, const std::string& source, Problems& problems) {
  MMFREE_CHECK(ConfigError, text.size() <= kMaxBytes, source, ": larger than 1 MiB; is this a configuration?");
  MMFREE_CHECK(ConfigError, is_clean_text(text, "\t\n\r"), source, ": not UTF-8 text; is this a configuration?");
  std::optional<ConfigNode> root = parse_yaml(text, "", problems);
  if (!root) problems.throw_if_any();
  return std::move(*root);
}

void apply_override(ConfigNode& root, const std::string& text, Problems& problems) {
  const bool reset = text.starts_with('~');
  const size_t begin = reset, equals = text.find('='), dot = std::min(text.find('.'), equals);
  if (reset ? equals != text.npos || text.size() == 1 : equals == text.npos || equals == 0)
    return problems.add(0, "", quote(text) + " is not an override; expected section.key=value or ~section.key");
  if (!is_clean_text(text)) return problems.add(0, "", quote(text) + " is not UTF-8 text on one line");

  const std::string raw = reset ? "" : text.substr(equals + 1);
  ConfigNode value;
  value.reset = reset;
  value.kind = ConfigNode::Kind::scalar;
  value.text = raw;
  if (!raw.empty() && std::string_view("[{\"'").find(raw[0]) != std::string_view::npos) {
    std::optional<ConfigNode> parsed = parse_yaml(raw, text, problems);
    if (!parsed) return;
    value = std::move(*parsed);
  }

  ConfigNode* parent = &root;
  const auto child = [&](const std::string& key) {
    if (parent->kind != ConfigNode::Kind::map) {
      parent->kind = ConfigNode::Kind::map;
      parent->reset = false;
      parent->items.clear();
    }
    auto at = std::find_if(parent->items.begin(), parent->items.end(), [&](auto& item) { return item.key == key; });
    if (at == parent->items.end()) at = parent->items.insert(at, ConfigNode{});
    at->key = key;
    parent = &*at;
  };
  child(text.substr(begin, dot - begin));
  if (dot < equals) child(text.substr(dot + 1, equals - dot - 1));
  value.key = parent->key;
  *parent = std::move(value);
}

}  // namespace mmfree
