#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace mmfree {

/// One value of a configuration file. A tree by construction: anchors, aliases and tags are refused while it is built.
struct ConfigNode {
  enum class Kind { nothing, scalar, list, map };

  Kind kind = Kind::nothing;
  int line = 0;                   ///< from 1; 0: given on the command line
  std::string text;               ///< of a scalar
  bool reset = false;             ///< the command line takes it back: as if it were not given
  bool quoted = false;            ///< the scalar is in quotes, so it is text even if it looks like a number
  std::vector<ConfigNode> items;  ///< of a list or a map
  std::string key;                ///< the key of this node in the map around it
  int key_line = 0;               ///< line of that key

  /// The item of a map with this key, or null.
  const ConfigNode* find(std::string_view name) const;
  /// For messages: "'abc'", "quoted 'abc'", "a list", "a map", "nothing".
  std::string describe() const;
};

/// Whether `text` is UTF-8 without control characters other than those in `allowed`.
bool is_clean_text(std::string_view text, std::string_view allowed = {});

/// Collects all problems of a configuration, to report them together.
class Problems {
 public:
  static constexpr int kNoLine = -1;

  explicit Problems(std::string source) : source_(std::move(source)) {}
  /// `line` as in ConfigNode or kNoLine; `path` is the key concerned ("optim.lr").
  void add(int line, const std::string& path, const std::string& message);
  /// Whether a problem was added for `path` or a key below it.
  bool failed(std::string_view path) const;
  /// If there are problems, throws ConfigError with one line per problem, in the order of the file.
  void throw_if_any() const;

 private:
  struct Problem {
    int line;
    std::string path, message;
  };
  std::string source_;
  std::vector<Problem> problems_;
};

/// Parses one YAML document of at most 1 MiB, 32 levels and 20,000 nodes, without anchors, aliases, tags or merge keys.
/// Adds duplicate keys to `problems`; throws ConfigError if the text is not valid. Empty text is an empty map.
ConfigNode parse_config_tree(const std::string& text, const std::string& source, Problems& problems);

/// Applies the override "section.key=value" to `root`, or "~section.key", which takes back what was given before. A
/// value that starts with [ { " or ' is YAML; any other is text as it is.
void apply_override(ConfigNode& root, const std::string& text, Problems& problems);

}  // namespace mmfree
