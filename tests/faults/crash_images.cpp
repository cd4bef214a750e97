// Records what saves do to files, cuts the record at a random point as a power failure would, and starts from what a
// disk may then hold: an acknowledged checkpoint is found to the bit, and never anything but the one before or after.
//   crash_images COUNT SEED [CASE]     CASE: only this one
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <map>

#include "core/files.h"
#include "core/rng.h"
#include "tests/support/child.h"
#include "tests/support/fault_main.h"
#include "tests/support/interpose.h"
#include "tests/support/saved_run.h"
#include "tests/support/temp_dir.h"

namespace mmfree {
namespace {

namespace fs = std::filesystem;
using interpose::Call;
using interpose::Op;
using interpose::Verdict;

/// One thing done to the files of a folder. Files have numbers of their own: names come and go.
struct Event {
  enum Kind { create, write, truncate, sync, rename, unlink, sync_folder, acknowledge } kind;
  int file = -1;
  int64_t offset = 0;      ///< of write; the new size of truncate; the number of acknowledge
  std::string bytes = {};  ///< of write
  std::string name = {}, to = {};
};

/// Notes what happens in one folder.
class Recorder : public interpose::Watch {
 public:
  explicit Recorder(const std::string& folder) : folder_(folder) {}
  const std::vector<Event>& events() const { return events_; }
  void acknowledge(int64_t number) { events_.push_back({.kind = Event::acknowledge, .offset = number}); }

  void after(const Call& call, int64_t result) override {
    if (result < 0) return;
    switch (call.op) {
      case Op::open:
        return opened(call, int(result));
      case Op::close:
        open_.erase(call.fd);
        return;
      case Op::write:
        if (open_.count(call.fd)) wrote(call, positions_[call.fd], result), positions_[call.fd] += result;
        return;
      case Op::pwrite:
        return wrote(call, call.offset, result);
      case Op::ftruncate:
        return note(call.fd, {.kind = Event::truncate, .offset = int64_t(call.size)});
      case Op::fsync:
      case Op::fdatasync:
        return note(call.fd, {.kind = Event::sync});
      case Op::rename:
        events_.push_back({.kind = Event::rename, .name = name_in_folder(call.path), .to = name_in_folder(call.to)});
        return;
      case Op::unlink:
        events_.push_back({.kind = Event::unlink, .name = name_in_folder(call.path)});
        return;
      default:
        return;
    }
  }

 private:
  static constexpr int kFolder = -2;

  std::string name_in_folder(const std::string& path) const {
    MMFREE_CHECK(Error, path.starts_with(folder_ + "/"), path, ": a name outside the folder changes");
    return path.substr(folder_.size() + 1);
  }
  void opened(const Call& call, int fd) {
    positions_[fd] = 0;
    if (call.path == folder_) open_[fd] = kFolder;
    if (!call.creates) return;
    open_[fd] = files_++;
    note(fd, {.kind = Event::create, .name = name_in_folder(call.path)});
  }
  void wrote(const Call& call, int64_t offset, int64_t n) {
    note(call.fd, {.kind = Event::write, .offset = offset, .bytes = {static_cast<const char*>(call.bytes), size_t(n)}});
  }
  void note(int fd, Event event) {
    const auto found = open_.find(fd);
    if (found == open_.end()) return;
    event.file = found->second;
    if (event.file == kFolder) event.kind = Event::sync_folder;
    events_.push_back(std::move(event));
  }

  std::string folder_;
  std::vector<Event> events_;
  std::map<int, int> open_;  // descriptor -> file
  std::map<int, int64_t> positions_;
  int files_ = 0;
};

/// What a disk may hold when the power fails after the first `end` events. Of what was not synced, each write is kept,
/// dropped or torn to some of its blocks, whatever the others are; each change of a name is kept or not, but names
/// never come apart from their files. A bare write that is missing leaves zeros.
class Image {
 public:
  Image(const std::vector<Event>& events, size_t end, std::map<std::string, std::string> durable,
        const RandomStream& random)
      : names_(), random_(random) {
    for (auto& [name, bytes] : durable) {
      names_[name] = kDurable - int(contents_.size());
      contents_[names_[name]] = bytes;
    }
    // With this chance a thing that was not synced is on the disk; all or nothing are likely too.
    const double u = next();
    chance_ = u < 0.2 ? 0 : u < 0.4 ? 1 : next();
    block_ = next() < 0.5 ? 512 : 4096;
    for (size_t i = 0; i < end; ++i) apply(events, i, end);
  }

  /// Writes the files into a folder.
  void write_to(const std::string& folder) const {
    for (const auto& [name, file] : names_) {
      const auto found = contents_.find(file);
      spit(folder + "/" + name, found == contents_.end() ? "" : found->second);
    }
  }

 private:
  static constexpr int kDurable = -10;

  double next() { return random_.uniform(drawn_++); }
  bool kept(bool synced) { return synced || next() < chance_; }

  /// True if an event that makes `event` durable comes before `end`.
  static bool is_synced(const std::vector<Event>& events, size_t at, size_t end) {
    const bool data = events[at].kind == Event::write || events[at].kind == Event::truncate;
    for (size_t i = at + 1; i < end; ++i)
      if (data ? events[i].kind == Event::sync && events[i].file == events[at].file
               : events[i].kind == Event::sync_folder)
        return true;
    return false;
  }

  void apply(const std::vector<Event>& events, size_t at, size_t end) {
    const Event& e = events[at];
    const bool synced = is_synced(events, at, end);
    switch (e.kind) {
      case Event::write:
        return write(e, synced);
      case Event::truncate:
        if (kept(synced)) contents_[e.file].resize(size_t(e.offset));
        return;
      case Event::create:
        file_of_[e.name] = e.file;
        if (kept(synced)) names_[e.name] = e.file;
        return;
      case Event::rename:
        file_of_[e.to] = file_of_.at(e.name);
        file_of_.erase(e.name);
        if (kept(synced)) names_.erase(e.name), names_[e.to] = file_of_[e.to];
        return;
      case Event::unlink:
        file_of_.erase(e.name);
        if (kept(synced)) names_.erase(e.name);
        return;
      default:
        return;
    }
  }

  void write(const Event& e, bool synced) {
    std::string& to = contents_[e.file];
    const bool torn = !synced && next() < 0.3;
    if (!torn && !kept(synced)) return;
    for (size_t i = 0; i < e.bytes.size();) {
      const size_t in_block = (size_t(e.offset) + i) % size_t(block_);
      const size_t n = std::min(e.bytes.size() - i, size_t(block_) - in_block);
      const size_t at = size_t(e.offset) + i;
      if (!torn || next() < 0.5) {
        if (to.size() < at + n) to.resize(at + n);
        to.replace(at, n, e.bytes, i, n);
      }
      i += n;
    }
  }

  std::map<std::string, int> names_;    // on the disk
  std::map<std::string, int> file_of_;  // as the program sees it
  std::map<int, std::string> contents_;
  RandomStream random_;
  uint64_t drawn_ = 0;
  double chance_ = 0;
  int block_ = 512;
};

/// Saves of a run, each over older checkpoints with retention.
class CrashImages {
 public:
  CrashImages() {
    start_run(run_, recorded_, kFirst);
    const std::string first = checkpoint_path(recorded_, kFirst);
    durable_[fs::path(first).filename().string()] = slurp(first);
    Recorder recorder(recorded_ + "/checkpoints");
    for (int64_t step = kFirst + 10; step <= kLast; step += 10) {
      run_.assume(step);
      interpose::set_watch(&recorder);
      run_.save_now(recorded_, step, 1, [&] { recorder.acknowledge(step); });
      interpose::set_watch(nullptr);
    }
    events_ = recorder.events();
    const auto writes = std::count_if(events_.begin(), events_.end(), [](auto& e) { return e.kind == Event::write; });
    MMFREE_CHECK(Error, writes > 20, "of the saves only ", events_.size(), " events were seen");
    std::printf("crash_images: %zu events recorded, %lld of them writes\n", events_.size(), (long long)writes);
  }

  /// One case. Returns what is wrong, empty if nothing is.
  std::string run(uint64_t seed, int64_t number, Tally& tally) {
    const RandomStream random(seed, uint64_t(number), "crash_images");
    const size_t end = point(random);
    fs::remove_all(folder_);
    fs::create_directories(folder_ + "/checkpoints");
    Image(events_, end, durable_, RandomStream(seed, uint64_t(number), "image")).write_to(folder_ + "/checkpoints");
    int64_t acknowledged = kFirst;
    for (size_t i = 0; i < end; ++i)
      if (events_[i].kind == Event::acknowledge) acknowledged = events_[i].offset;
    const std::string where =
        concat("power fails after event ", end, " of ", events_.size(), ", step ", acknowledged, " acknowledged: ");
    try {
      const int64_t step = run_.restart(folder_);
      if (step != acknowledged && step != acknowledged + 10) return concat(where, "found step ", step);
      tally.count(step == acknowledged ? "with the acknowledged one found" : "with the one in progress found");
    } catch (const Error& e) {
      return where + e.what();
    }
    return {};
  }

 private:
  static constexpr int64_t kFirst = 10, kLast = 30;

  /// Half of the time around a change of names, where few events lie.
  size_t point(const RandomStream& random) const {
    if (random.uniform(0) < 0.5) return size_t(random.uniform(1) * double(events_.size() + 1));
    std::vector<size_t> near;
    for (size_t i = 0; i < events_.size(); ++i)
      if (events_[i].kind != Event::write)
        for (size_t k = i; k <= std::min(i + 1, events_.size()); ++k) near.push_back(k);
    return near[size_t(random.uniform(1) * double(near.size()))];
  }

  TempDir dir_;
  std::string recorded_ = dir_ / "recorded", folder_ = dir_ / "run";
  SavedRun run_;
  std::map<std::string, std::string> durable_;
  std::vector<Event> events_;
};

}  // namespace
}  // namespace mmfree

int main(int argc, char** argv) {
  // Its faults are made, so no disk need be waited for.
  if (std::filesystem::is_directory("/dev/shm")) setenv("TMPDIR", "/dev/shm", 0);
  return mmfree::fault_main([&] { return mmfree::run_cases<mmfree::CrashImages>("crash_images", argc, argv); });
}
