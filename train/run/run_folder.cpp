#include "train/run/run_folder.h"

#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "core/system/folder_mark.h"
#include "train/watch/tensorboard.h"

namespace mmfree {
namespace fs = std::filesystem;
namespace {

std::string now_utc() {
  const std::time_t now = std::time(nullptr);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&now));
  return text;
}

/// What is damaged in a checkpoint; nothing if it is intact. @throws what h5::Reader does for other reasons
std::optional<std::string> damage_of(const std::string& path) try {
  const h5::Reader verified(path, "checkpoint", h5::Verify::everything);
  return std::nullopt;
} catch (const DamagedError& e) {
  return e.what();
}

/// Empty also if the file cannot be read.
std::string kind_of(const std::string& path) try { return h5::kind_of(path); } catch (const Error&) {
  return {};
}

constexpr const char* kCheckpoint = "checkpoint";
constexpr const char* kSamples = "samples.jsonl";
/// The kind of the folder's mark.
constexpr const char* kRun = "run";
}  // namespace

std::string checkpoint_path(const std::string& run_dir, int64_t step) {
  char name[40];
  std::snprintf(name, sizeof name, "step-%08lld.h5", static_cast<long long>(step));
  return (fs::path(run_dir) / "checkpoints" / name).string();
}

std::vector<int64_t> checkpoint_steps(const std::string& run_dir) {
  const fs::path folder = fs::path(run_dir) / "checkpoints";
  std::vector<int64_t> steps;
  for (const std::string& name : names_in(folder.string())) {
    if (name.size() < 9 || !name.starts_with("step-") || !name.ends_with(".h5")) continue;
    int64_t step = -1;
    const char* end = name.data() + name.size() - 3;
    if (std::from_chars(name.data() + 5, end, step).ptr == end && step >= 0 &&
        checkpoint_path(run_dir, step) == folder / name)
      steps.push_back(step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

std::optional<Checkpoint> newest_checkpoint(const std::string& run_dir,
                                            const std::function<void(const std::string&)>& warn,
                                            const std::function<void(const Checkpoint&)>& use) {
  const std::vector<int64_t> steps = checkpoint_steps(run_dir);
  for (auto it = steps.rbegin(); it != steps.rend(); ++it) {
    const std::string path = checkpoint_path(run_dir, *it);
    try {
      Checkpoint file(path, h5::Verify::while_reading);
      use(file);
      return file;
    } catch (const Error&) {
      const std::optional<std::string> damage = damage_of(path);
      if (!damage) throw;  // what else is wrong is no reason to go back to an older one
      warn("passing over a damaged checkpoint: " + *damage);
    }
  }
  return std::nullopt;
}

std::vector<int64_t> good_checkpoints(const std::string& run_dir, int64_t every, int64_t step) {
  std::vector<int64_t> good;
  const std::vector<int64_t> steps = checkpoint_steps(run_dir);
  for (auto it = steps.rbegin(); it != steps.rend(); ++it) try {
      if (*it < 1 || *it >= step || *it % every != 0) continue;
      const Checkpoint file(checkpoint_path(run_dir, *it), h5::Verify::header);
      if (file.state().step == *it && file.state().skipped_in_row == 0) good.push_back(*it);
    } catch (const Error&) {
    }
  return good;
}

void retain_checkpoints(const std::string& run_dir, int64_t newest, const Retention& keep) {
  const h5::Reader verified(checkpoint_path(run_dir, newest), "checkpoint");
  std::vector<int64_t> steps;
  try {
    steps = checkpoint_steps(run_dir);
  } catch (const IoError&) {
    return;  // the next save removes what stays
  }
  std::erase_if(steps,
                [&](int64_t step) { return step > newest || kind_of(checkpoint_path(run_dir, step)) != kCheckpoint; });
  std::vector<int64_t> named = keep.named;
  if (keep.good_of > 0)
    if (const auto good = good_checkpoints(run_dir, keep.good_of, newest + 1); !good.empty()) named.push_back(good[0]);
  for (size_t i = 0; i + size_t(keep.last) < steps.size(); ++i) {
    const bool stays = std::find(named.begin(), named.end(), steps[i]) != named.end();
    if (stays || (keep.every > 0 && steps[i] % keep.every == 0)) continue;
    std::error_code ignored;
    fs::remove(checkpoint_path(run_dir, steps[i]), ignored);
  }
}

std::vector<std::string> set_aside(const std::string& run_dir, int64_t step) {
  std::vector<std::string> renamed;
  for (const int64_t later : checkpoint_steps(run_dir)) {
    if (later <= step) continue;
    const std::string path = checkpoint_path(run_dir, later), kind = kind_of(path);
    if (!kind.empty() && kind != kCheckpoint) continue;
    std::error_code error;
    std::string name = path + ".damaged";
    for (int i = 1; fs::exists(fs::symlink_status(name, error)); ++i) name = concat(path, ".damaged-", i);
    fs::rename(path, name, error);
    if (!error) renamed.push_back(name);
  }
  if (!renamed.empty()) sync_directory((fs::path(run_dir) / "checkpoints").string());
  return renamed;
}

void remove_unfinished_checkpoints(const std::string& run_dir) {
  const fs::path folder = fs::path(run_dir) / "checkpoints";
  for (const std::string& name : names_in(folder.string())) {
    std::error_code ignored;
    const std::string_view of = path_of_temporary(name);
    if (of.starts_with("step-") && of.ends_with(".h5") &&
        fs::is_regular_file(fs::symlink_status(folder / name, ignored)))
      fs::remove(folder / name, ignored);
  }
}

RunFolder::RunFolder(std::string path, bool own) : path_(std::move(path)) {
  if (own) lock_ = FolderLock(path_);
}

RunFolder::~RunFolder() {
  if (!made_) return;
  if (!lock_.is_held()) {  // another process may work there
    made_->keep();
    return;
  }
  std::error_code ignored;
  for (const std::string& name : written_) fs::remove(file(name), ignored);
  if (!written_.empty()) {
    for (const std::string& path : event_files(file("tb"))) fs::remove(path, ignored);
    fs::remove(file("tb"), ignored);
  }
  lock_ = FolderLock();
}

void RunFolder::keep() {
  if (made_) made_->keep();
  made_.reset();
}

std::string RunFolder::file(const std::string& name) const { return (fs::path(path_) / name).string(); }

std::map<std::string, std::string> describe_run(const RunConfig& config, const std::string& tokenizer,
                                                const RunFacts& facts) {
  nlohmann::ordered_json run = {{"mmfree", MMFREE_VERSION},
                                {"started", now_utc()},
                                {"from_step", facts.from_step},
                                {"threads", omp_get_max_threads()},
                                {"device", facts.target.name},
                                {"compute", name_of(facts.target.compute)},
                                {"backward", name_of(backward_products(facts.target, config.train.backward).ternary)},
                                {"parameters", config.model.parameter_count()},
                                {"train_tokens", facts.train_tokens},
                                {"train_data", facts.data},
                                {"tokenizer", facts.tokenizer}};
  if (!config.train.init_from.empty()) run["init_from"] = config.train.init_from;
  std::map<std::string, std::string> files = {{"config.resolved.yaml", to_yaml(config)},
                                              {"run.json", run.dump(1) + "\n"}};
  if (fs::is_regular_file(config.source)) files["config.yaml"] = read_file(config.source, 1 << 20);
  if (!tokenizer.empty()) files["tokenizer.model"] = tokenizer;
  return files;
}

std::vector<std::string> RunFolder::open(int64_t step, std::map<std::string, std::string> files,
                                         const std::vector<std::string>& growing) {
  const auto hash_of = [&](const std::string& name) {
    std::error_code ignored;
    return fs::is_regular_file(file(name), ignored) ? hash_of_file(file(name)) : std::string();
  };
  // A configuration or tokenizer that the user keeps in this folder is its own copy.
  std::erase_if(files, [&](const auto& f) { return hash_of(f.first) == content_hash(f.second); });
  std::vector<std::string> replaced;
  for (const auto& [name, bytes] : files) replaced.push_back(name);
  std::error_code ignored;
  for (const std::string& name : growing)
    if (fs::is_regular_file(file(name), ignored)) replaced.push_back(name);
  if (step < 0) require_marked(path_, kRun, replaced);
  MarkedFiles marked = read_mark(path_, kRun);

  const std::string checkpoints = file("checkpoints");
  const bool is_new = !fs::exists(path_, ignored);
  made_ = std::make_unique<NeededDirectory>(checkpoints);
  if (!lock_.is_held()) {
    lock_ = FolderLock(path_);
    MMFREE_CHECK(CreateError, step >= 0 || checkpoint_steps(path_).empty(), path_,
                 ": another process has trained in this folder just now; choose another folder or give --resume");
  }
  MMFREE_CHECK(CreateError, ::access(checkpoints.c_str(), W_OK | X_OK) == 0, checkpoints,
               ": no checkpoints can be written here: ", error_text(errno));
  if (is_new) {
    written_ = growing;
    written_.push_back(mark_name(kRun));
    for (const auto& [name, bytes] : files) written_.push_back(name);
  }
  remove_unfinished_checkpoints(path_);
  const std::vector<std::string> renamed = step >= 0 ? set_aside(path_, step) : std::vector<std::string>();
  // The mark proves the older files too: the process may be killed before it has replaced them.
  std::erase_if(marked, [&](const auto& m) { return files.count(m.first) > 0; });
  // Texts of an older run would pass for those of a new one that writes none.
  if (step < 0 && std::find(growing.begin(), growing.end(), kSamples) == growing.end() &&
      marked.erase({kSamples, kAnyContent}) > 0)
    fs::remove(file(kSamples), ignored);
  for (const std::string& name : growing) marked.emplace(name, kAnyContent);
  for (const auto& [name, bytes] : files) {
    if (const std::string older = hash_of(name); !older.empty()) marked.emplace(name, older);
    marked.emplace(name, content_hash(bytes));
  }
  write_mark(path_, kRun, marked);
  for (const auto& [name, bytes] : files) write_file(file(name), bytes);
  return renamed;
}

void RunFolder::restore() {
  NeededDirectory(file("checkpoints")).keep();
  if (!lock_.is_other(path_)) return lock_.check();
  FolderLock lock(path_);
  MMFREE_CHECK(CreateError, checkpoint_steps(path_).empty(), path_,
               ": is another folder than at the start, with the checkpoints of another run; nothing is written there");
  lock_ = std::move(lock);
}

void RunFolder::remove_checkpoints_after(int64_t step) const {
  const std::vector<int64_t> steps = checkpoint_steps(path_);
  for (auto it = steps.rbegin(); it != steps.rend() && *it > step; ++it) {
    std::error_code ignored;
    if (kind_of(checkpoint_path(path_, *it)) == kCheckpoint) fs::remove(checkpoint_path(path_, *it), ignored);
  }
}

bool RunFolder::consume(const char* name) const {
  std::error_code error;
  return fs::remove(file(name), error);
}

}  // namespace mmfree
