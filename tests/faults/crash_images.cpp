// Records what operations that write do to a folder, cuts the record at a random point as a power failure would, and
// looks at what a disk may then hold: the old state or the new one, and once the operation had returned, the new one.
//   crash_images COUNT SEED [CASE]     CASE: only this one
#include <sys/stat.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "core/rng.h"
#include "core/system/files.h"
#include "tests/support/fault_main.h"
#include "tests/support/fault_operations.h"
#include "tests/support/interpose.h"
#include "tests/support/tiny_run.h"
#include "train/run/trainer.h"

namespace mmfree {
namespace {

namespace fs = std::filesystem;
using interpose::Call;
using interpose::Op;

/// Files and folders have numbers of their own, because names come and go.
using Node = int;
inline constexpr Node kRoot = 0, kNone = -1;

/// What a folder holds, and the folders in it.
struct Tree {
  std::map<Node, std::map<std::string, Node>> folders{{kRoot, {}}};
  std::map<Node, std::string> files;

  void read(const std::string& path, Node folder, Node& next) {
    for (const fs::directory_entry& entry : fs::directory_iterator(path)) {
      const Node node = next++;
      folders[folder][entry.path().filename().string()] = node;
      if (entry.is_directory())
        folders[node], read(entry.path().string(), node, next);
      else
        files[node] = slurp(entry.path().string());
    }
  }
  void write(const std::string& path, Node folder = kRoot) const {
    fs::create_directories(path);
    for (const auto& [name, node] : folders.at(folder)) {
      if (folders.count(node))
        write(path + "/" + name, node);
      else
        spit(path + "/" + name, files.count(node) ? files.at(node) : "");
    }
  }
};

/// One thing done to a folder.
struct Event {
  enum Kind { write, truncate, sync, link, unlink, rename, exchange, sync_folder } kind;
  Node node = kNone;                ///< the file or folder that it is done to
  int64_t offset = 0;               ///< of write; the new size of truncate
  std::string bytes = {};           ///< of write
  Node folder = kNone, to = kNone;  ///< where the name is; where it goes
  std::string name = {}, new_name = {};
  Node other = kNone;      ///< what exchange puts in node's place
  bool is_folder = false;  ///< of link
};

/// Notes what happens below one folder.
class Recorder : public interpose::Watch {
 public:
  Recorder(std::string path, const Tree& before, Node next)
      : path_(std::move(path)), folders_(before.folders), next_(next) {}
  std::vector<Event> events;

  void after(const Call& call, int64_t result) override {
    if (result < 0) return;
    const std::lock_guard lock(mutex_);
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
      case Op::mkdir:
        if (const Place place = find(call.path)) folders_[link(place, true)];
        return;
      case Op::rename:
        return renamed(call);
      case Op::unlink:
        if (const Place place = find(call.path, call.fd)) unlinked(place);
        return;
      default:
        return;
    }
  }

 private:
  /// A name in a folder; false if it is not below the recorded one.
  struct Place {
    Node folder = kNone;
    std::string name = {};
    explicit operator bool() const { return folder != kNone; }
  };

  Place find(const std::string& path, int at = -1) const {
    const auto base = open_.find(at);
    const bool absolute = path.starts_with(path_ + "/");
    if (!absolute && base == open_.end()) return {};
    Place place{absolute ? kRoot : base->second};
    const fs::path below = absolute ? path.substr(path_.size() + 1) : path;
    for (const fs::path& part : below) {
      if (!place.name.empty()) place.folder = folders_.at(place.folder).at(place.name);
      place.name = part.string();
    }
    return place;
  }
  Node at(const Place& place) const {
    const auto& names = folders_.at(place.folder);
    const auto found = names.find(place.name);
    return found == names.end() ? kNone : found->second;
  }

  void opened(const Call& call, int fd) {
    open_.erase(fd);
    if (call.path == path_) open_[fd] = kRoot;
    const Place place = find(call.path, call.fd);
    if (!place) return;
    struct stat info {};
    positions_[fd] = call.appends && ::fstat(fd, &info) == 0 ? info.st_size : 0;
    open_[fd] = call.creates && at(place) == kNone ? link(place, false) : at(place);
  }
  Node link(const Place& place, bool is_folder) {
    const Node node = next_++;
    folders_[place.folder][place.name] = node;
    events.push_back(
        {.kind = Event::link, .node = node, .folder = place.folder, .name = place.name, .is_folder = is_folder});
    return node;
  }
  void unlinked(const Place& place) {
    events.push_back({.kind = Event::unlink, .node = at(place), .folder = place.folder, .name = place.name});
    folders_[place.folder].erase(place.name);
  }
  void renamed(const Call& call) {
    const Place from = find(call.path), to = find(call.to);
    MMFREE_CHECK(Error, bool(from) == bool(to), call.path, ": a name comes into the folder or leaves it");
    if (!from) return;
    const Node node = at(from), other = at(to);
    events.push_back({.kind = call.exchanges ? Event::exchange : Event::rename,
                      .node = node,
                      .folder = from.folder,
                      .to = to.folder,
                      .name = from.name,
                      .new_name = to.name,
                      .other = other});
    folders_[from.folder].erase(from.name);
    folders_[to.folder][to.name] = node;
    if (call.exchanges) folders_[from.folder][from.name] = other;
  }
  void wrote(const Call& call, int64_t offset, int64_t n) {
    note(call.fd, {.kind = Event::write, .offset = offset, .bytes = {static_cast<const char*>(call.bytes), size_t(n)}});
  }
  void note(int fd, Event event) {
    const auto found = open_.find(fd);
    if (found == open_.end()) return;
    event.node = found->second;
    if (folders_.count(event.node)) event.kind = Event::sync_folder;
    events.push_back(std::move(event));
  }

  std::mutex mutex_;  // checkpoints are written by a thread of their own
  std::string path_;
  std::map<Node, std::map<std::string, Node>> folders_;  // as the program sees them
  Node next_;
  std::map<int, Node> open_;  // by descriptor
  std::map<int, int64_t> positions_;
};

/// What a disk may hold when the power fails after the first `end` events. Of what was not synced, each write is kept,
/// dropped or torn to some of its blocks, whatever the others are; each change of a name is kept or not, but a rename
/// is never half done, and names never come apart from their files. A bare write that is missing leaves zeros.
class Image {
 public:
  Image(const std::vector<Event>& events, size_t end, const Tree& before, const RandomStream& random)
      : disk_(before), random_(random) {
    int unsynced = 0;
    for (size_t i = 0; i < end; ++i) unsynced += changes(events[i]) && !is_synced(events, i, end);
    // With this chance a thing that was not synced is on the disk; all, nothing, and all or nothing but one are likely.
    const double u = next();
    chance_ = u < 0.3 ? 0 : u < 0.6 ? 1 : next();
    if (u > 0.15 && u < 0.45) odd_ = int(next() * unsynced);
    block_ = next() < 0.5 ? 512 : 4096;
    for (size_t i = 0; i < end; ++i)
      if (changes(events[i])) apply(events[i], is_synced(events, i, end));
  }
  const Tree& disk() const { return disk_; }

 private:
  double next() { return random_.uniform(drawn_++); }
  bool kept(bool synced) { return synced || (unsynced_++ == odd_) != (next() < chance_); }

  static bool changes(const Event& e) { return e.kind != Event::sync && e.kind != Event::sync_folder; }

  /// True if an event that makes `event` durable comes before `end`.
  static bool is_synced(const std::vector<Event>& events, size_t at, size_t end) {
    const Event& e = events[at];
    const bool data = e.kind == Event::write || e.kind == Event::truncate;
    const Node holder = data ? e.node : e.to != kNone ? e.to : e.folder;
    return std::any_of(events.begin() + int64_t(at) + 1, events.begin() + int64_t(end), [&](const Event& later) {
      return later.kind == (data ? Event::sync : Event::sync_folder) && later.node == holder;
    });
  }

  void apply(const Event& e, bool synced) {
    switch (e.kind) {
      case Event::write:
        return write(e, synced);
      case Event::truncate:
        if (kept(synced)) disk_.files[e.node].resize(size_t(e.offset));
        return;
      case Event::link:
        if (e.is_folder) disk_.folders[e.node];
        if (kept(synced)) disk_.folders[e.folder][e.name] = e.node;
        return;
      case Event::unlink:
        if (kept(synced)) erase(e);
        return;
      case Event::rename:
        if (kept(synced)) erase(e), disk_.folders[e.to][e.new_name] = e.node;
        return;
      case Event::exchange:
        if (kept(synced)) disk_.folders[e.folder][e.name] = e.other, disk_.folders[e.to][e.new_name] = e.node;
        return;
      case Event::sync:
      case Event::sync_folder:
        return;
    }
  }

  void erase(const Event& e) {
    auto& names = disk_.folders[e.folder];
    const auto found = names.find(e.name);
    if (found != names.end() && found->second == e.node) names.erase(found);
  }

  void write(const Event& e, bool synced) {
    std::string& to = disk_.files[e.node];
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

  Tree disk_;
  RandomStream random_;
  uint64_t drawn_ = 0;
  double chance_ = 0;
  int unsynced_ = 0, odd_ = -1;
  int block_ = 512;
};

/// An operation over an older state, and the record of it.
class Recorded {
 public:
  explicit Recorded(std::unique_ptr<FaultOperation> operation) : operation_(std::move(operation)) {
    const std::string folder = dir_ / "recorded";
    operation_->prepare(folder);
    Node next = kRoot + 1;
    before_.read(folder, kRoot, next);
    Recorder recorder(folder, before_, next);
    operation_->run(folder, [&] { interpose::set_watch(&recorder); });
    interpose::set_watch(nullptr);
    operation_->check(folder, true);
    events_ = std::move(recorder.events);
    const auto of = [&](Event::Kind kind) {
      return std::count_if(events_.begin(), events_.end(), [&](const Event& e) { return e.kind == kind; });
    };
    const auto renames = of(Event::rename) + of(Event::exchange);
    MMFREE_CHECK(Error, of(Event::write) > 0 && of(Event::sync) > 0 && of(Event::sync_folder) > 0 && renames > 0,
                 operation_->name(), ": of ", events_.size(), " events none is a write, a sync or a rename");
    std::printf("crash_images: %s: %zu events recorded, %lld of them writes\n", operation_->name(), events_.size(),
                (long long)of(Event::write));
  }

  /// One case. Returns what is wrong, empty if nothing is.
  std::string run(uint64_t seed, int64_t number, Tally& tally) {
    const RandomStream random(seed, uint64_t(number), "crash_images");
    const size_t end = point(random);
    // Who returned after the last event is done; the power may also fail later.
    const bool done = end == events_.size() && random.uniform(2) < 0.8;
    const std::string folder = dir_ / "image";
    fs::remove_all(folder);
    Image(events_, end, before_, RandomStream(seed, uint64_t(number), "image")).disk().write(folder);
    try {
      operation_->check(folder, done);
      tally.count(done ? "after the end" : "before the end");
    } catch (const Error& e) {
      return concat(operation_->name(), ": power fails after event ", end, " of ", events_.size(),
                    done ? ", the operation has returned: " : ": ", e.what());
    }
    return {};
  }

 private:
  /// After how many events the power fails: any number, around a change of names, when most waits for a sync of its
  /// folder, or at the end.
  size_t point(const RandomStream& random) const {
    std::vector<size_t> points;
    const double u = random.uniform(0);
    for (size_t i = 0; i < events_.size(); ++i) {
      const Event::Kind kind = events_[i].kind;
      if (u < 0.25 || (u < 0.5 && kind != Event::write) || (u < 0.8 && kind == Event::sync_folder)) points.push_back(i);
      if (u < 0.5 && kind != Event::write) points.push_back(i + 1);
    }
    return points.empty() ? events_.size() : points[size_t(random.uniform(1) * double(points.size()))];
  }

  std::unique_ptr<FaultOperation> operation_;
  TempDir dir_;
  Tree before_;
  std::vector<Event> events_;
};

/// Training: a run that goes on, and one in a folder that is not there yet. Each makes a step, saves and ends.
class TrainOperation : public FaultOperation {
 public:
  const char* name() const override { return "train"; }
  void prepare(const std::string& dir) override {
    const TempDir whole;
    for (int64_t step = 1; step <= 2; ++step) {
      make_step(whole.path());
      learned_[step] = learned(checkpoint_path(whole.path(), step));
    }
    rows_ = timeless_metrics(whole.path());
    make_step(dir + "/old");
  }
  void run(const std::string& dir, const std::function<void()>& begin) override {
    begin();
    make_step(dir + "/old");
    make_step(dir + "/new/deep");
  }
  void check(const std::string& dir, bool succeeded) override {
    check_run(dir + "/old", succeeded ? 2 : 1, 2);
    check_run(dir + "/new/deep", succeeded ? 1 : 0, 1);
  }

 private:
  static void make_step(const std::string& run_dir) {
    RunConfig config = tiny_run(run_dir);
    config.data.valid.clear();
    config.train.steps = 3;
    config.train.resume = {ResumeFrom::newest_if_any};
    config.train.max_time = 1e-9;
    Trainer(config, true, false).run();
  }
  /// What a restart finds: a checkpoint of a step from `least` to `most`, and the metrics up to it.
  void check_run(const std::string& run_dir, int64_t least, int64_t most) const {
    std::vector<std::string> warnings;
    const auto newest = newest_checkpoint(run_dir, into(warnings));
    MMFREE_CHECK(Error, warnings.empty(), "a damaged checkpoint under its final name: ", warnings.front());
    const int64_t step = newest ? newest->state().step : 0;
    MMFREE_CHECK(Error, step >= least && step <= most, run_dir, ": is at step ", step);
    if (step == 0) return;
    MMFREE_CHECK(Error, learned(newest->path()) == learned_.at(step), run_dir, ": other bits after step ", step);
    MetricsWriter(run_dir + "/metrics.jsonl", step);
    const auto rows = timeless_metrics(run_dir);
    MMFREE_CHECK(Error, rows == std::vector(rows_.begin(), rows_.begin() + step), run_dir, ": ", rows.size(),
                 " lines of metrics are left, or other ones, at step ", step);
  }

  std::map<int64_t, std::map<std::string, std::string>> learned_;  // by step
  std::vector<nlohmann::json> rows_;
};

/// Takes the operations that write in turns.
class CrashImages {
 public:
  CrashImages() {
    recorded_.push_back(std::make_unique<Recorded>(std::make_unique<TrainOperation>()));
    recorded_.push_back(std::make_unique<Recorded>(std::make_unique<HfOperation>(false)));
    for (auto& operation : fault_operations())
      if (operation->writes()) recorded_.push_back(std::make_unique<Recorded>(std::move(operation)));
  }
  std::string run(uint64_t seed, int64_t number, Tally& tally) {
    return recorded_[size_t(number) % recorded_.size()]->run(seed, number, tally);
  }

 private:
  std::vector<std::unique_ptr<Recorded>> recorded_;
};

}  // namespace
}  // namespace mmfree

int main(int argc, char** argv) {
  // Its faults are made, so no disk need be waited for.
  if (std::filesystem::is_directory("/dev/shm")) setenv("TMPDIR", "/dev/shm", 0);
  return mmfree::fault_main([&] { return mmfree::run_cases<mmfree::CrashImages>("crash_images", argc, argv); });
}
