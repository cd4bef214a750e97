#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <variant>
#include <vector>

namespace mmfree {

/// A text of which only the completion is scored.
struct PromptedText {
  std::string prompt, completion;
};

/// Token ids as they were given: 0 or more, not checked against a vocabulary.
struct TokenIds {
  std::vector<int32_t> ids;
  std::vector<uint8_t> mask;  ///< 1: scored, 0: not; one per id, or empty: all are scored
};

/// One document. All text is valid UTF-8.
struct Document {
  std::variant<std::string, PromptedText, TokenIds> content;
  std::string set;  ///< the source set that the row names; empty if it names none

  int64_t bytes() const;  ///< of the text, or 4 per id
};

/// How the rows of text files are read.
struct TextOptions {
  std::string text_field = "text";                    ///< the key of the text; dots lead into objects: "a.b"
  std::string set_field = "meta.redpajama_set_name";  ///< the key of the source set, likewise
  int64_t vocab_size = 0;                             ///< token ids at or above it are malformed; 0: any are taken
  bool skip_malformed = false;                        ///< count malformed rows instead of refusing them
  bool strict = false;                                ///< refuse what is otherwise tolerated: see TextReader
  /// Called now and then while text is read, or while standard input keeps the reader waiting: what it throws ends it.
  std::function<void()> check_stop;
};

}  // namespace mmfree
