#include "data/paths.h"

#include <glob.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <new>

#include "core/error.h"

namespace mmfree {

namespace fs = std::filesystem;

std::vector<std::string> expand_paths(const std::vector<std::string>& entries,
                                      const std::vector<std::string>& suffixes) {
  const auto wanted = [&](const std::string& name) {
    return std::any_of(suffixes.begin(), suffixes.end(), [&](const auto& s) { return name.ends_with(s); });
  };
  std::vector<std::string> out;
  for (const std::string& entry : entries) {
    std::vector<std::string> found;
    std::error_code error;
    if (fs::is_directory(entry, error)) {
      for (const auto& e : fs::directory_iterator(entry, error))
        if (wanted(e.path().filename().string())) found.push_back(e.path().string());
      std::string list;
      for (const std::string& s : suffixes) list += " *" + s;
      MMFREE_CHECK(MissingError, !found.empty(), entry, ": the directory holds none of:", list);
    } else if (fs::exists(entry, error)) {
      found.push_back(entry);
    } else {
      glob_t matches{};
      const int failed = ::glob(entry.c_str(), GLOB_ERR, nullptr, &matches);
      if (failed == GLOB_NOSPACE) throw std::bad_alloc();  // globfree might free twice what was found so far
      MMFREE_CHECK(IoError, failed != GLOB_ABORTED, entry,
                   ": a folder of this pattern cannot be read: ", std::strerror(errno));
      for (size_t i = 0; i < matches.gl_pathc; ++i) found.emplace_back(matches.gl_pathv[i]);
      ::globfree(&matches);
      MMFREE_CHECK(MissingError, !found.empty(), entry, ": no such file, and no file matches it as a pattern");
    }
    std::sort(found.begin(), found.end());
    out.insert(out.end(), found.begin(), found.end());
  }
  return out;
}

}  // namespace mmfree
