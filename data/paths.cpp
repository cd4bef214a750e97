#include "data/paths.h"

#include <fnmatch.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>

#include "core/error.h"
#include "core/system/files.h"

namespace mmfree {
namespace {

namespace fs = std::filesystem;

/// file_type::not_found if nothing has this name.
fs::file_type type_of(const fs::path& path) {
  std::error_code error;
  const fs::file_type type = fs::status(path, error).type();
  MMFREE_CHECK(IoError, type != fs::file_type::none, path.string(), ": cannot be looked up: ", error.message());
  return type;
}

bool matches(const std::string& pattern, const std::string& name) {
  const int result = ::fnmatch(pattern.c_str(), name.c_str(), FNM_PERIOD);
  MMFREE_CHECK(IoError, result == 0 || result == FNM_NOMATCH, pattern, ": cannot be matched as a pattern");
  return result == 0;
}

/// Appends to `found` what matches the components of a pattern from `part` on, below `base`.
void match(const fs::path& base, fs::path::iterator part, const fs::path& pattern, std::vector<std::string>& found) {
  if (part == pattern.end()) {
    if (type_of(base) != fs::file_type::not_found) found.push_back(base.string());
    return;
  }
  const std::string component = part->string();
  const auto next = std::next(part);
  if (component.find_first_of("*?[\\") == std::string::npos) return match(base / component, next, pattern, found);
  if (!base.empty() && type_of(base) != fs::file_type::directory) return;
  for (const std::string& name : names_in(base.string()))
    if (matches(component, name)) match(base / name, next, pattern, found);
}

}  // namespace

std::vector<std::string> expand_paths(const std::vector<std::string>& entries,
                                      const std::vector<std::string>& suffixes) {
  const auto wanted = [&](const std::string& name) {
    return std::any_of(suffixes.begin(), suffixes.end(), [&](const auto& s) { return name.ends_with(s); });
  };
  std::vector<std::string> out;
  for (const std::string& entry : entries) {
    std::vector<std::string> found;
    const fs::file_type type = type_of(entry);
    if (type == fs::file_type::directory) {
      for (const std::string& name : names_in(entry))
        if (wanted(name)) found.push_back((fs::path(entry) / name).string());
      std::string list;
      for (const std::string& s : suffixes) list += " *" + s;
      MMFREE_CHECK(MissingError, !found.empty(), entry, ": the directory holds none of:", list);
    } else if (type != fs::file_type::not_found) {
      found.push_back(entry);
    } else {
      const fs::path pattern(entry);
      match({}, pattern.begin(), pattern, found);
      MMFREE_CHECK(MissingError, !found.empty(), entry, ": no such file, and no file matches it as a pattern");
    }
    std::sort(found.begin(), found.end());
    out.insert(out.end(), found.begin(), found.end());
  }
  return out;
}

}  // namespace mmfree
