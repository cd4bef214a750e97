#include "core/system/folder_mark.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <sstream>

#include "core/error.h"
#include "core/system/files.h"
#include "core/system/hash.h"

namespace mmfree {

namespace fs = std::filesystem;

namespace {

constexpr int64_t kMaxMarkBytes = int64_t(64) << 20;
constexpr std::string_view kBetween = "  ";  // as sha256sum writes it

std::string hex(const Hash128& hash) {
  const auto digest = hash.digest();
  return hex16(digest[1]) + hex16(digest[0]);
}

std::string first_line(const std::string& kind) { return concat("mmfree ", kind, " 1\n"); }

/// The files that a mark's text names; nothing if it is no mark of this kind, or damaged.
std::optional<MarkedFiles> parse_mark(const std::string& text, const std::string& kind) {
  const std::string first = first_line(kind);
  const size_t last = text.size() < 2 ? text.npos : text.rfind('\n', text.size() - 2);
  if (!text.starts_with(first) || last == text.npos) return std::nullopt;
  const std::string lines = text.substr(0, last + 1);
  if (text.substr(last + 1) != hex16(hash64(lines)) + '\n') return std::nullopt;
  MarkedFiles files;
  std::istringstream rest(lines.substr(first.size()));
  for (std::string line; std::getline(rest, line);) {
    const size_t at = line.find(kBetween);
    if (at == line.npos) return std::nullopt;
    files.emplace(line.substr(at + kBetween.size()), line.substr(0, at));
  }
  return files;
}

/// The hash by which the mark proves a file; nothing if it does not.
std::optional<std::string> proof_of(const fs::path& path, const MarkedFiles& mark,
                                    const std::function<std::string(const std::string&)>& hash_of) try {
  const std::string name = path.filename().string();
  if (!fs::is_regular_file(fs::symlink_status(path))) return std::nullopt;
  if (mark.count({name, kAnyContent})) return kAnyContent;
  const std::string hash = hash_of(path.string());
  return mark.count({name, hash}) ? std::optional(hash) : std::nullopt;
} catch (const DataError&) {
  return std::nullopt;
}

}  // namespace

std::string mark_name(const std::string& kind) { return ".mmfree-" + kind; }

std::string content_hash(std::string_view bytes) {
  Hash128 hash;
  hash.update(bytes.data(), bytes.size());
  return hex(hash);
}

std::string hash_of_file(const std::string& path) {
  const Fd file = open_input(path);
  const int64_t size = size_of_file(file, path);
  std::string part(size_t(std::min<int64_t>(size, 1 << 20)), '\0');
  Hash128 hash;
  for (int64_t at = 0; at < size;) {
    const int64_t n = std::min(size - at, int64_t(part.size()));
    read_exactly(file, path, at, part.data(), n);
    hash.update(part.data(), size_t(n));
    at += n;
  }
  return hex(hash);
}

MarkedFiles read_mark(const std::string& folder, const std::string& kind) {
  const fs::path path = fs::path(folder) / mark_name(kind);
  std::error_code ignored;
  const fs::file_status status = fs::symlink_status(path, ignored);
  if (!fs::exists(status)) return {};
  std::optional<MarkedFiles> files;
  if (fs::is_regular_file(status)) files = parse_mark(read_file(path.string(), kMaxMarkBytes), kind);
  MMFREE_CHECK(CreateError, files, path.string(),
               ": is not a mark that mmfree wrote, or is damaged; nothing here is replaced: move it away, or choose "
               "another folder");
  return *files;
}

void write_mark(const std::string& folder, const std::string& kind, const MarkedFiles& files) {
  std::string text = first_line(kind);
  for (const auto& [name, hash] : files) {
    MMFREE_CHECK(Error, name.find('\n') == name.npos, folder, ": a mark cannot name ", quote(name));
    text += concat(hash, kBetween, name, '\n');
  }
  write_file((fs::path(folder) / mark_name(kind)).string(), concat(text, hex16(hash64(text)), '\n'));
}

MarkedFiles require_marked(const std::string& folder, const std::string& kind, const std::vector<std::string>& names,
                           const std::function<std::string(const std::string&)>& hash_of) {
  const MarkedFiles mark = read_mark(folder, kind);
  MarkedFiles proven;
  std::vector<std::string> others;
  for (const std::string& name : names) {
    const fs::path path = fs::path(folder) / name;
    std::error_code ignored;
    if (!fs::exists(fs::symlink_status(path, ignored))) continue;
    if (const auto hash = proof_of(path, mark, hash_of))
      proven.emplace(name, *hash);
    else
      others.push_back(name);
  }
  if (others.empty()) return proven;
  const std::string more = others.size() > 1 ? concat(" and ", others.size() - 1, " more") : "";
  const std::string what = concat(folder, ": holds ", quote(others.front()), more);
  MMFREE_CHECK(CreateError, !mark.empty(), what, ", and no mark ", mark_name(kind),
               " that proves what mmfree wrote; nothing is replaced: move the folder away (mv ", folder, ' ', folder,
               ".old), or choose another");
  throw CreateError(concat(what, ", which mmfree did not write or which has changed since; nothing is replaced: move ",
                           others.size() > 1 ? "them" : "it", " away, or choose another folder"));
}

void require_replaceable(const std::string& path, bool overwrite, const std::function<void()>& prove) {
  std::error_code ignored;
  const fs::file_status status = fs::symlink_status(path, ignored);
  if (!fs::exists(status)) return;
  MMFREE_CHECK(CreateError, overwrite, path, ": exists already; choose another name or give --overwrite");
  MMFREE_CHECK(CreateError, fs::is_regular_file(status), path,
               ": exists and is not a regular file; choose another name");
  try {
    prove();
  } catch (const DataError& e) {
    throw CreateError(concat(e.what(), "; so it is not replaced: move or delete it, or choose another name"));
  }
}

}  // namespace mmfree
