#include "train/commands/prompts.h"

#include "core/error.h"
#include "data/text/line_reader.h"
#include "train/formats/strict_json.h"

namespace mmfree {
namespace {

constexpr size_t kMostBytes = size_t(16) << 20;

std::string prompt_of(const std::string& line, const std::string& where) {
  MMFREE_CHECK(DataError, line.size() <= kMostBytes, where, ": the line has ", line.size(), " bytes, expected at most ",
               kMostBytes);
  const nlohmann::json j = parse_json(line, where);
  MMFREE_CHECK(DataError, j.is_object(), where, ": expected an object {\"prompt\": \"…\"}, got ", j.type_name());
  for (const auto& [key, value] : j.items())
    MMFREE_CHECK(DataError, key == "prompt", where, ": unknown key ", quote(key), ", expected \"prompt\" alone");
  const auto prompt = j.find("prompt");
  MMFREE_CHECK(DataError, prompt != j.end(), where, ": has no \"prompt\"; expected {\"prompt\": \"…\"}");
  MMFREE_CHECK(DataError, prompt->is_string(), where, ": \"prompt\" must be a text, got ", prompt->type_name());
  return prompt->get<std::string>();
}

}  // namespace

std::vector<Prompt> read_prompts(const std::string& path) {
  std::vector<Prompt> prompts;
  LineReader in(path);
  for (std::string line; in.next(&line);) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = concat(path, ':', in.line());
    prompts.push_back({prompt_of(line, where), where});
  }
  return prompts;
}

}  // namespace mmfree
