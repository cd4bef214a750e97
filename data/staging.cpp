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
constexpr int64_t kMaxNames = int64_t(64) << 20;

/// Removes a file or an empty folder; with `all` a folder and its content.
void remove_name(const fs::path& path, bool all = false) {
  std::error_code error;
  all ? fs::remove_all(path, error) : fs::remove(path, error);
  MMFREE_CHECK(IoError, !error, path.string(), ": cannot remove: ", error.message());
}

void move_name(const fs::path& from, const fs::path& to) {
  std::error_code error;
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

bool is_shard(const std::string& name) {
  return (name.starts_with("train-") || name.starts_with("valid-")) && name.ends_with(".h5") &&
         name.find('/') == std::string::npos;
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
  const std::string hash = hex16(hash64(plan));
  if (!has_plan(path_ / kPlan, hash)) {
    std::error_code error;
    fs::remove_all(path_, error);
    fs::create_directory(path_, error);
    MMFREE_CHECK(CreateError, !error, path_.string(), ": cannot create: ", error.message());
    try {
      write_file((path_ / kPlan).string(), hash);
    } catch (...) {
      fs::remove_all(path_, error);
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
               "; name another directory, or ask to overwrite");
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
    if (shards_in(path_).empty()) fs::remove_all(path_);
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
  std::set<std::string> names;
  std::string list;
  for (const fs::path& p : shards_in(path_)) {
    names.insert(p.filename());
    list += p.filename().string() + '\n';
  }
  write_file((path_ / kNames).string(), list);
  clear_mark();
  move_name(path_, mark_);
  sync_directory(output_.string());
  for (const std::string& name : names) move_name(mark_ / name, output_ / name);
  for (const fs::path& p : shards_in(output_))
    if (!names.count(p.filename())) remove_name(p);
  sync_directory(output_.string());
  move_name(mark_, path_);  // all shards are in place; the destructor removes the remaining lists
  sync_directory(output_.string());
}

/// Removes the plan first: the next run takes the shards of a mark with a plan back.
void Staging::clear_mark() {
  std::error_code ignored;
  if (!fs::exists(mark_, ignored)) return;
  for (const char* name : {kPlan, kNames}) remove_name(mark_ / name);
  sync_directory(mark_.string());
  for (const std::string& name : names_in(mark_.string())) remove_name(mark_ / name, true);
}

}  // namespace mmfree
