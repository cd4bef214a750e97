#include "data/staging.h"

#include <cstdio>
#include <set>
#include <sstream>

#include "core/error.h"
#include "core/system/hash.h"

namespace mmfree {

namespace fs = std::filesystem;

namespace {

constexpr const char* kPlan = "plan";
/// File in a folder kPublishing with the names of all new shards.
constexpr const char* kNames = "names";
constexpr const char* kTokens = "tokens";
/// The kind of the output directory's mark.
constexpr const char* kShards = "shards";
constexpr int64_t kMaxNames = int64_t(64) << 20;

void remove_name(const fs::path& path) {
  std::error_code error;
  fs::remove(path, error);
  MMFREE_CHECK(IoError, !error, path.string(), ": cannot remove: ", error.message());
}

/// A file that has the new name already gives its attributes.
void move_name(const fs::path& from, const fs::path& to) {
  std::error_code error;
  take_attributes(from, to);
  fs::rename(from, to, error);
  MMFREE_CHECK(IoError, !error, from.string(), ": cannot move to ", to.string(), ": ", error.message());
}

bool has_plan(const fs::path& file, const std::string& hash) {
  std::error_code error;
  if (!fs::exists(file, error)) return false;
  try {
    return read_file(file.string(), int64_t(hash.size())) == hash;
  } catch (const DataError&) {
    return false;
  }
}

bool is_shard(std::string_view name) {
  return (name.starts_with("train-") || name.starts_with("valid-")) && name.ends_with(".h5") &&
         name.find('/') == name.npos;
}

/// Of the files in prepare's hidden folders.
bool is_own_name(std::string_view name) { return name == kPlan || name == kNames || is_shard(name); }

std::string hash_of_shard(const std::string& path, h5::Verify verify = h5::Verify::header) {
  return h5::Reader(path, kTokens, verify).hash();
}

/// Whether prepare made a file that lies in one of its hidden folders.
bool is_own(const fs::path& path) {
  const std::string name = path.filename().string();
  std::error_code ignored;
  if (!fs::is_regular_file(fs::symlink_status(path, ignored))) return false;
  const std::string_view of = path_of_temporary(name);
  if (!of.empty()) return is_own_name(of);
  return is_own_name(name) && (!is_shard(name) || h5::kind_of(path.string()) == kTokens);
}

/// That a hidden folder, if it is there, holds nothing but what prepare made.
void require_own(const fs::path& folder) {
  std::error_code ignored;
  const fs::file_status status = fs::symlink_status(folder, ignored);
  if (!fs::exists(status)) return;
  MMFREE_CHECK(CreateError, fs::is_directory(status), folder.string(),
               ": is not a folder that prepare made; move it away, or name another directory");
  for (const std::string& name : names_in(folder.string()))
    MMFREE_CHECK(CreateError, is_own(folder / name), (folder / name).string(),
                 ": is not a file that prepare made, or is damaged; nothing is removed: move it away, or name another "
                 "directory");
}

/// Removes what prepare made in a hidden folder. The lists go first: without them a later run takes nothing from it.
void clear_own(const fs::path& folder) {
  std::error_code ignored;
  if (!fs::exists(folder, ignored)) return;
  for (const char* name : {kPlan, kNames}) remove_name(folder / name);
  sync_directory(folder.string());
  for (const std::string& name : names_in(folder.string()))
    if (is_own(folder / name)) remove_name(folder / name);
}

}  // namespace

std::vector<fs::path> shards_in(const fs::path& directory) {
  std::vector<fs::path> out;
  for (const std::string& name : names_in(directory.string()))
    if (is_shard(name)) out.push_back(directory / name);
  return out;
}

Staging::Staging(const std::string& output, const std::string& plan, bool overwrite)
    : output_(output), path_(output_ / ".preparing"), mark_(output_ / kPublishing), made_(output) {
  lock_ = FolderLock(output_.string());
  if (!overwrite) refuse_to_replace();
  older(h5::Verify::everything);
  const std::string hash = hex16(hash64(plan));
  if (!has_plan(path_ / kPlan, hash)) {
    clear_own(path_);
    std::error_code error;
    fs::create_directory(path_, error);
    MMFREE_CHECK(CreateError, !error, path_.string(), ": cannot create: ", error.message());
    try {
      write_file((path_ / kPlan).string(), hash);
    } catch (...) {
      fs::remove(path_, error);
      throw;
    }
  }
  std::error_code ignored;
  if (has_plan(mark_ / kPlan, hash) && fs::exists(mark_ / kNames, ignored)) take_back();
}

void Staging::refuse_to_replace() const {
  const auto old = shards_in(output_);
  std::error_code ignored;
  MMFREE_CHECK(CreateError, old.empty() || fs::exists(mark_, ignored), output_.string(),
               ": already holds shards, for example ", old.front().filename().string(),
               "; name another directory, or give --overwrite");
}

/// The shards that are in place. Everything that is to be replaced or removed must be ours.
MarkedFiles Staging::older(h5::Verify verify) const {
  for (const fs::path& folder : {path_, mark_}) require_own(folder);
  std::vector<std::string> names;
  for (const fs::path& p : shards_in(output_)) names.push_back(p.filename().string());
  return require_marked(output_.string(), kShards, names,
                        [&](const std::string& path) { return hash_of_shard(path, verify); });
}

/// An earlier run was killed in `publish`: moves its shards back, also those that were already in place. The mark
/// stays.
void Staging::take_back() {
  std::error_code error;
  std::istringstream names(read_file((mark_ / kNames).string(), kMaxNames));
  for (std::string name; std::getline(names, name);)
    for (const fs::path& from : {mark_ / name, output_ / name})
      if (is_shard(name) && !fs::exists(path_ / name, error) && fs::exists(from, error)) move_name(from, path_ / name);
  remove_name(mark_ / kPlan);
}

Staging::~Staging() {
  try {
    if (!shards_in(path_).empty()) return;
    clear_own(path_);
    fs::remove(path_);
  } catch (...) {
    return;  // the folder stays for the next run
  }
}

std::string Staging::file(const std::string& split, int64_t number) const {
  char name[64];
  std::snprintf(name, sizeof name, "%s-%05lld.h5", split.c_str(), static_cast<long long>(number));
  return (path_ / name).string();
}

Staging::Kept Staging::keep(const ShardInfo& info, const std::function<void()>& check_stop) {
  Kept kept;
  std::set<std::string> names;
  std::error_code error;
  for (std::string path; fs::exists(path = file(info.split, kept.shards), error);) try {
      if (check_stop) check_stop();
      const TokenShards shard({path}, h5::Verify::everything);
      if (!(shard.info() == info)) break;
      ++kept.shards;
      kept.documents += shard.documents();
      kept.tokens += shard.total_tokens();
      names.insert(fs::path(path).filename());
    } catch (const DamagedError&) {
      break;
    }
  for (const std::string& name : names_in(path_.string()))
    if (name.starts_with(info.split + "-") && !names.count(name)) remove_name(path_ / name);
  return kept;
}

void Staging::discard() {
  for (const fs::path& p : shards_in(path_)) remove_name(p);
}

void Staging::publish() {
  lock_.check();
  const MarkedFiles old = older(h5::Verify::header);
  MarkedFiles made;
  std::set<std::string> names;
  std::string list;
  for (const fs::path& p : shards_in(path_)) {
    made.emplace(p.filename(), hash_of_shard(p));
    names.insert(p.filename());
    list += p.filename().string() + '\n';
  }
  write_file((path_ / kNames).string(), list);
  MarkedFiles both = made;
  both.insert(old.begin(), old.end());
  write_mark(output_.string(), kShards, both);  // wherever this is cut, the mark proves what is in place
  clear_own(mark_);
  move_name(path_, mark_);
  sync_directory(output_.string());
  for (const std::string& name : names) move_name(mark_ / name, output_ / name);
  for (const auto& [name, hash] : old)
    if (!names.count(name)) remove_name(output_ / name);
  sync_directory(output_.string());
  write_mark(output_.string(), kShards, made);
  move_name(mark_, path_);  // all shards are in place; the destructor removes the remaining lists
  sync_directory(output_.string());
}

}  // namespace mmfree
