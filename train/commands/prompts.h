#pragma once
#include <string>
#include <vector>

namespace mmfree {

/// A prompt of a file, and where it stands: "prompts.jsonl:3".
struct Prompt {
  std::string text, where;
};

/// Reads a file of JSON lines, {"prompt": "…"} each, up to 16 MiB a line; "-" is standard input. Blank lines are passed
/// over. The whole file is read and checked before anything is computed. @throws MissingError, IoError, DataError
/// naming the line
std::vector<Prompt> read_prompts(const std::string& path);

}  // namespace mmfree
