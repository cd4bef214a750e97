#pragma once
#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/text/document.h"
#include "data/text/json_scanner.h"

namespace mmfree {

/// Reads the JSON objects that stand for documents. Keeps only the fields that a document is made of.
class RowParser {
 public:
  explicit RowParser(const TextOptions& options);

  /// The document of a row, by the first of these that it has: the text field; "ids", with an optional "mask" of 0 and
  /// 1; "prompt" and "completion". @throws Malformed
  Document parse(std::string_view row);

 private:
  enum Name { kText, kIds, kMask, kPrompt, kCompletion, kSet, kFields };
  struct Field {
    std::string path;
    bool found = false;
    std::optional<Malformed> problem;
    std::string text;
    std::vector<int32_t> numbers;
  };

  void members(JsonScanner& row, const std::string& parent);
  void read(JsonScanner& row, Field& field, bool is_list);
  void read_number(JsonScanner& row, Field& field);
  bool leads_to_a_field(const std::string& path) const;
  Field& need(Name name);
  TokenIds token_ids();

  std::array<Field, kFields> fields_;
  int64_t vocab_size_;
  std::vector<std::string> keys_;  // of the row, the first few
};

}  // namespace mmfree
