#include "data/staging.h"

#include <cstdio>
#include <set>

#include "core/error.h"
#include "core/hash.h"

namespace mmfree {

namespace fs = std::filesystem;

namespace {

constexpr const char* kPlan = "plan";

void remove_name(const fs::path& path) {
  std::error_code error;
  fs::remove(path, error);
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

}  // namespace

std::vector<fs::path> shards_in(const fs::path& directory) {
  std::vector<fs::path> out;
  for (const std::string& name : names_in(directory.string()))
    if ((name.starts_with("train-") || name.starts_with("valid-")) && name.ends_with(".h5"))
      out.push_back(directory / name);
  return out;
}

Staging::Staging(const std::string& output, const std::string& plan)
    : output_(output), path_(output_ / ".preparing"), mark_(output_ / kPublishing), made_(output) {
  lock_ = lock_directory(output_.string());
  const std::string hash = hex16(hash64(plan));
  if (has_plan(path_ / kPlan, hash)) return;
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

Staging::~Staging() {
  try {
    if (shards_in(path_).empty()) fs::remove_all(path_);
  } catch (...) {
    return;  // it stays for the next start
  }
}

std::string Staging::file(const std::string& split, int64_t number) const {
  char name[64];
  std::snprintf(name, sizeof name, "%s-%05lld.h5", split.c_str(), static_cast<long long>(number));
  return (path_ / name).string();
}

Staging::Kept Staging::keep(const ShardInfo& info) {
  Kept kept;
  std::set<std::string> names;
  std::error_code error;
  for (std::string path; fs::exists(path = file(info.split, kept.shards), error);) try {
      const TokenShards shard({path});
      if (!(shard.info() == info)) break;
      ++kept.shards;
      kept.documents += shard.documents();
      kept.tokens += shard.total_tokens();
      names.insert(fs::path(path).filename());
    } catch (const DataError&) {
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
  for (const fs::path& p : shards_in(mark_)) remove_name(p);
  remove_name(mark_ / kPlan);
  move_name(path_, mark_);
  sync_directory(output_.string());
  for (const fs::path& p : shards_in(output_)) remove_name(p);
  for (const fs::path& p : shards_in(mark_)) move_name(p, output_ / p.filename());
  sync_directory(output_.string());
  remove_name(mark_ / kPlan);
  remove_name(mark_);
  sync_directory(output_.string());
}

}  // namespace mmfree
