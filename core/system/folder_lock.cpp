#include "core/system/folder_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <mutex>
#include <optional>
#include <sstream>
#include <system_error>
#include <thread>

#include "core/error.h"
#include "core/system/files.h"
#include "core/system/hash.h"

namespace mmfree {
namespace {

constexpr std::string_view kMark = ".mmfree-lease-";
constexpr int kTries = 20;

/// Names the machine since it was started, and its numbering of processes, of which each container has its own. Empty
/// if the system does not tell.
std::string this_machine() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  std::error_code error;
  const std::string numbering = std::filesystem::read_symlink("/proc/self/ns/pid", error);
  return boot.empty() || error ? "" : hex16(hash64(boot + numbering));
}

/// When a process was started, in ticks of this machine; empty if there is no such process or it cannot be seen.
std::string start_of(int process) {
  std::ifstream in(concat("/proc/", process, "/stat"));
  const std::string all(std::istreambuf_iterator<char>(in), {});
  std::istringstream fields(all.substr(all.rfind(')') + 1));  // the program's name before it may hold anything
  std::string field;
  for (int i = 3; i <= 22; ++i) fields >> field;
  return fields ? field : "";
}

std::string this_host() {
  char name[65] = {};
  return ::gethostname(name, sizeof name - 1) == 0 ? name : "unknown";
}

/// What the name of a lease says.
struct Holder {
  std::string machine, start, host;
  int process = 0;

  explicit Holder(const std::string& lease) {
    std::istringstream parts(lease.substr(kMark.size()));
    std::string number;
    std::getline(parts, machine, '-');
    (parts >> process).ignore();
    for (std::string* part : {&start, &number}) std::getline(parts, *part, '-');
    std::getline(parts, host, '\0');
  }
  bool has_ended() const {
    if (machine.empty() || machine != this_machine()) return false;
    if (::kill(process, 0) != 0 && errno == ESRCH) return true;
    const std::string now = start_of(process);
    return !now.empty() && now != start;  // the number belongs to another process
  }
};

/// A name that no lease had before.
std::string new_lease() {
  static std::atomic<int> number{0};
  const int process = ::getpid();
  return concat(kMark, this_machine(), '-', process, '-', start_of(process), '-', number++, '-', this_host());
}

}  // namespace

struct FolderLock::State {
  std::string path;
  Fd folder;
  int error = 0;      ///< of flock; 0 if it holds the folder
  std::string lease;  ///< the name of its file
  std::atomic<bool> lost{false};
  std::mutex mutex;
  std::condition_variable changed;
  bool ends = false;
  std::thread renewing;

  ~State() {
    if (renewing.joinable()) {
      {
        const std::lock_guard lock(mutex);
        ends = true;
      }
      changed.notify_all();
      renewing.join();
    }
    if (!lease.empty()) ::unlinkat(folder.get(), lease.c_str(), 0);
  }

  std::optional<std::string> take();
  std::optional<Holder> claim();
  void renew(std::chrono::milliseconds every);
};

/// Tries once to take the folder. Returns who has it, for people; nothing if this object has it now.
std::optional<std::string> FolderLock::State::take() {
  error = restarted([&] { return ::flock(folder.get(), LOCK_EX | LOCK_NB); }) == 0 ? 0 : errno;
  if (error == EWOULDBLOCK) return "another process works in this folder";
  const std::optional<Holder> other = error ? claim() : std::nullopt;
  if (!other) return std::nullopt;
  return concat("process ", other->process, " on ", quote(other->host),
                " works in this folder, or was killed less than a minute ago");
}

/// Makes the lease, then looks for others: of two that do so at once, at least one sees the other. If there is another,
/// removes its own and returns that one. Leases that do not count are removed; as no name is used twice, never a new
/// one. @throws CreateError, IoError
std::optional<Holder> FolderLock::State::claim() {
  lease = new_lease();
  const Fd made(restarted([&] {
    return ::openat(folder.get(), lease.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
  }));
  struct stat mine = {}, other = {};
  MMFREE_CHECK(CreateError, made.is_open() && ::fstat(made.get(), &mine) == 0, path, "/", lease,
               ": cannot create this file, which keeps other processes out: ", error_text(errno));
  std::optional<Holder> found;
  for (const std::string& name : names_in(concat("/proc/self/fd/", folder.get()))) {
    if (name == lease || !name.starts_with(kMark)) continue;
    if (::fstatat(folder.get(), name.c_str(), &other, AT_SYMLINK_NOFOLLOW) != 0) continue;  // it was just removed
    const Holder holder(name);
    if (mine.st_mtime - other.st_mtime > kExpiry.count() || holder.has_ended())
      ::unlinkat(folder.get(), name.c_str(), 0);
    else
      found = holder;
  }
  if (found) ::unlinkat(folder.get(), lease.c_str(), 0);
  return found;
}

/// Runs in a thread of its own. A lease that someone removed is made again, unless another holder came.
void FolderLock::State::renew(std::chrono::milliseconds every) {
  std::unique_lock lock(mutex);
  while (!changed.wait_for(lock, every, [this] { return ends; }) && !lost) try {
      if (::utimensat(folder.get(), lease.c_str(), nullptr, 0) != 0 && errno == ENOENT) lost = claim().has_value();
    } catch (const std::exception&) {
      continue;  // the next time may go better, and at worst the lease expires
    }
}

FolderLock::FolderLock() = default;
FolderLock::~FolderLock() = default;
FolderLock::FolderLock(FolderLock&&) noexcept = default;
FolderLock& FolderLock::operator=(FolderLock&&) noexcept = default;

FolderLock::FolderLock(const std::string& path, std::chrono::milliseconds renewal) {
  auto state = std::make_unique<State>();
  state->path = path;
  state->folder = Fd(restarted([&] { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
  if (!state->folder.is_open()) return;
  for (int tries = 1; const std::optional<std::string> holder = state->take(); ++tries) {
    MMFREE_CHECK(CreateError, tries < kTries, path, ": ", *holder, "; wait for its end, or choose another folder");
    // A process that was just killed may hold the lock for a moment, and two that claim at once may both withdraw.
    std::this_thread::sleep_for(std::chrono::milliseconds(25 + hash64(state->lease) % 50));
  }
  if (state->error) try {
      state->renewing = std::thread([s = state.get(), renewal] { s->renew(renewal); });
    } catch (const std::system_error& e) {
      throw IoError(concat(path, ": cannot start the thread that renews its lease: ", e.code().message(),
                           "; raise the limit of processes (ulimit -u)"));
    }
  state_ = std::move(state);
}

bool FolderLock::is_other(const std::string& path) const {
  struct stat mine = {}, there = {};
  return state_ && ::fstat(state_->folder.get(), &mine) == 0 && ::stat(path.c_str(), &there) == 0 &&
         (mine.st_ino != there.st_ino || mine.st_dev != there.st_dev);
}

void FolderLock::check() const {
  MMFREE_CHECK(CreateError, !state_ || !state_->lost, state_->path,
               ": another process took this folder, because this one did not renew its lease for a minute (was it "
               "suspended?); nothing more is written there");
}

std::string FolderLock::warning() const {
  if (!state_ || !state_->error) return {};
  return concat(state_->path, ": this file system has no locks (", error_text(state_->error), "); the file ", kMark,
                "... in it keeps other processes out instead");
}

}  // namespace mmfree
