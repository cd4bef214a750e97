#include "data/paths.h"

#include <fnmatch.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <set>

#include "core/error.h"
#include "core/system/files.h"

namespace mmfree {
namespace {

namespace fs = std::filesystem;

using Paths = std::vector<std::string>;

/// file_type::not_found if nothing has this name.
fs::file_type type_of(const fs::path& path) {
  std::error_code error;
  const fs::file_type type = fs::status(path, error).type();
  MMFREE_CHECK(IoError, type != fs::file_type::none, path.string(), ": cannot be looked up: ", error.message());
  return type;
}

bool is_folder(const fs::path& path) { return type_of(path) == fs::file_type::directory; }

bool matches(const std::string& pattern, const std::string& name) {
  const int result = ::fnmatch(pattern.c_str(), name.c_str(), FNM_PERIOD);
  MMFREE_CHECK(IoError, result == 0 || result == FNM_NOMATCH, pattern, ": cannot be matched as a pattern");
  return result == 0;
}

bool ends_with_one_of(const std::string& name, const Paths& suffixes) {
  return std::any_of(suffixes.begin(), suffixes.end(), [&](const auto& s) { return has_suffix(name, s); });
}

/// Goes through a directory and all below it, without hidden names. A directory to which links lead several times, or
/// in a circle, is visited once.
class Walk {
 public:
  /// Calls visit(path, is_folder) for `directory` and for all below it, in the order of the names.
  template <class Visit>
  void operator()(const fs::path& directory, const Visit& visit) {
    struct stat info;
    const std::string place = directory.empty() ? "." : directory.string();
    MMFREE_CHECK(IoError, ::stat(place.c_str(), &info) == 0, place, ": cannot be looked up: ", error_text(errno));
    if (!seen_.emplace(info.st_dev, info.st_ino).second) return;
    visit(directory, true);
    for (const std::string& name : names_in(directory.string())) {
      if (name.starts_with('.')) continue;
      const fs::path path = directory / name;
      if (is_folder(path))
        (*this)(path, visit);
      else
        visit(path, false);
    }
  }

 private:
  std::set<std::pair<dev_t, ino_t>> seen_;
};

/// Appends to `found` what matches the components of a pattern from `part` on, below `base`.
void match(const fs::path& base, fs::path::iterator part, const fs::path& pattern, Paths& found) {
  if (part == pattern.end()) {
    if (type_of(base) != fs::file_type::not_found) found.push_back(base.string());
    return;
  }
  const std::string component = part->string();
  const auto next = std::next(part);
  if (component.find_first_of("*?[\\") == std::string::npos) return match(base / component, next, pattern, found);
  if (!base.empty() && !is_folder(base)) return;
  if (component == "**")
    return Walk()(base, [&](const fs::path& path, bool directory) {
      if (directory) match(path, next, pattern, found);
    });
  for (const std::string& name : names_in(base.string()))
    if (matches(component, name)) match(base / name, next, pattern, found);
}

/// What matches, sorted.
Paths matched(const std::string& entry) {
  Paths found;
  const fs::path pattern(entry);
  match({}, pattern.begin(), pattern, found);
  MMFREE_CHECK(MissingError, !found.empty(), entry, ": no such file, and no file matches it as a pattern");
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

std::string listed(const Paths& suffixes) {
  std::string list;
  for (const std::string& s : suffixes) list += " *" + s;
  return list;
}

}  // namespace

bool has_suffix(std::string_view name, std::string_view suffix) {
  const auto same = [](char want, char have) { return want == (have >= 'A' && have <= 'Z' ? have - 'A' + 'a' : have); };
  return name.size() >= suffix.size() &&
         std::equal(suffix.begin(), suffix.end(), name.end() - ptrdiff_t(suffix.size()), same);
}

Paths expand_paths(const Paths& entries, const Paths& suffixes) {
  Paths out;
  for (const std::string& entry : entries) {
    const fs::file_type type = type_of(entry);
    if (type == fs::file_type::directory) {
      const size_t before = out.size();
      for (const std::string& name : names_in(entry))
        if (ends_with_one_of(name, suffixes)) out.push_back((fs::path(entry) / name).string());
      MMFREE_CHECK(MissingError, out.size() > before, entry, ": the directory holds none of:", listed(suffixes));
    } else if (type != fs::file_type::not_found) {
      out.push_back(entry);
    } else {
      for (std::string& path : matched(entry)) out.push_back(std::move(path));
    }
  }
  return out;
}

FoundFiles::FoundFiles(const Paths& entries, const Paths& suffixes) {
  for (const std::string& entry : entries) {
    const fs::file_type type = entry == "-" ? fs::file_type::regular : type_of(entry);
    if (type != fs::file_type::directory && type != fs::file_type::not_found) {
      files.push_back(entry);
      continue;
    }
    Paths found, others;
    const auto take = [&](const fs::path& path) {
      (ends_with_one_of(path.string(), suffixes) ? found : others).push_back(path.string());
    };
    Walk walk;
    for (const std::string& path : type == fs::file_type::directory ? Paths{entry} : matched(entry))
      if (is_folder(path))
        walk(path, [&](const fs::path& below, bool directory) {
          if (!directory) take(below);
        });
      else
        take(path);
    MMFREE_CHECK(MissingError, !found.empty(), entry, ": holds none of:", listed(suffixes),
                 others.empty() ? "" : "; " + passed_over_text(others));
    for (auto [from, to] : {std::pair{&found, &files}, {&others, &passed_over}}) {
      std::sort(from->begin(), from->end());
      to->insert(to->end(), from->begin(), std::unique(from->begin(), from->end()));
    }
  }
}

std::string passed_over_text(const Paths& files) {
  constexpr size_t kNamed = 5;
  if (files.empty()) return "";
  std::string text =
      concat("passed over ", files.size(), files.size() == 1 ? " file of another type: " : " files of other types: ");
  for (size_t i = 0; i < std::min(files.size(), kNamed); ++i) text += (i ? ", " : "") + files[i];
  return files.size() > kNamed ? concat(text, ", ... (+", files.size() - kNamed, ")") : text;
}

}  // namespace mmfree
