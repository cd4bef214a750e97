#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace mmfree {

/// Parses JSON from an untrusted source: at most 16 levels and 16 million values, no duplicate keys, valid UTF-8.
/// `where` (a path) starts every message. @throws DataError
nlohmann::json parse_json(std::string_view text, const std::string& where);

}  // namespace mmfree
