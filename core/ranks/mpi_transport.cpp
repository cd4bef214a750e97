#include "core/ranks/mpi_transport.h"

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <mutex>
#include <thread>

#include "core/error.h"
#include "core/ranks/mpi_module.h"

namespace mmfree {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

constexpr size_t kLargest = size_t(1) << 30;  ///< of one message of MPI, whose counts are ints
constexpr auto kIdle = std::chrono::seconds(2);
/// Waiting: so many tests in a row, then pauses that grow. Ranks may be more than cores.
constexpr int kTestsInARow = 100;
constexpr microseconds kShortPause(20), kLongPause(500);

class MpiTransport : public Transport {
 public:
  explicit MpiTransport(const MmfreeMpi& mpi) : mpi_(mpi), name_(concat("MPI (", mpi.library(), ")")) {}
  std::string name() const override { return name_; }
  void exchange(Channel, const std::vector<Outgoing>&, const std::vector<Incoming>&, const Check&) override;
  void finish() override {
    const std::lock_guard lock(mutex_);
    mpi_.finish();
  }

 private:
  struct Request {
    int number, peer;
    int expected;  ///< bytes to receive; -1: is sent
  };
  std::vector<Request> start(Channel, const std::vector<Outgoing>&, const std::vector<Incoming>&);
  bool test(std::vector<Request>&);
  static void verify(const char* problem, int peer) {
    if (problem) throw BrokenLink(peer, problem, true);
  }

  const MmfreeMpi& mpi_;
  const std::string name_;
  std::mutex mutex_;     ///< one thread at a time calls MPI
  bool broken_ = false;  ///< what is under way may still write: MPI must not be called again
};

std::vector<MpiTransport::Request> MpiTransport::start(Channel channel, const std::vector<Outgoing>& out,
                                                       const std::vector<Incoming>& in) {
  std::vector<Request> requests;
  const auto in_messages = [](size_t bytes, const auto& each) {
    size_t at = 0;
    do {
      const size_t n = std::min(bytes - at, kLargest);
      each(at, int(n));
      at += n;
    } while (at < bytes);
  };
  for (const Incoming& piece : in)
    in_messages(piece.bytes, [&](size_t at, int n) {
      requests.push_back({0, piece.from, n});
      verify(mpi_.receive(static_cast<char*>(piece.data) + at, n, piece.from, channel, &requests.back().number),
             piece.from);
    });
  for (const Outgoing& piece : out)
    in_messages(piece.bytes, [&](size_t at, int n) {
      requests.push_back({0, piece.to, -1});
      verify(mpi_.send(static_cast<const char*>(piece.data) + at, n, piece.to, channel, &requests.back().number),
             piece.to);
    });
  return requests;
}

/// Drops what is done. Returns whether that was anything.
bool MpiTransport::test(std::vector<Request>& requests) {
  const size_t before = requests.size();
  std::erase_if(requests, [&](const Request& r) {
    int done = 0, bytes = 0;
    verify(mpi_.test(r.number, &done, &bytes), r.peer);
    if (done && r.expected >= 0 && bytes != r.expected)
      throw BrokenLink(r.peer, concat("expected ", r.expected, " bytes, it sent ", bytes), false);
    return done != 0;
  });
  return requests.size() < before;
}

void MpiTransport::exchange(Channel channel, const std::vector<Outgoing>& out, const std::vector<Incoming>& in,
                            const Check& check) {
  std::unique_lock lock(mutex_);
  const auto still = [&] {
    if (broken_) throw BrokenLink(-1, "an earlier exchange failed", true);
  };
  try {
    still();
    std::vector<Request> requests = start(channel, out, in);
    auto moved = Clock::now(), checked = moved;
    auto pause = kShortPause;
    for (int tests = 0; !requests.empty(); ++tests) {
      if (test(requests)) {
        moved = Clock::now();
        tests = 0;
        pause = kShortPause;
        continue;
      }
      lock.unlock();
      if (tests < kTestsInARow) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(pause);
        pause = std::min(2 * pause, kLongPause);
      }
      lock.lock();
      still();
      const auto now = Clock::now();
      if (now - checked > milliseconds(50)) check(now - moved > kIdle), checked = now;
    }
  } catch (...) {
    broken_ = true;
    throw;
  }
}

/// The module lies beside the program, or as installed in the folder lib beside the program's.
void* open_module(std::string& problem) {
  const char* name = "libmmfree_mpi.so";
  std::error_code error;
  const std::string folder = std::filesystem::read_symlink("/proc/self/exe", error).parent_path().string();
  problem = concat(name, " was not found beside the program");
  for (const std::string& path : {folder + "/" + name, folder + "/../lib/" + name, std::string(name)}) {
    // Open MPI's own plug-ins find its symbols in the global scope.
    if (void* module = ::dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL)) return module;
    const char* reason = ::dlerror();
    if (!std::filesystem::exists(path, error)) continue;
    problem = reason ? reason : "it cannot be opened";
    break;
  }
  return nullptr;
}

}  // namespace

std::unique_ptr<Transport> start_mpi(int& rank, int& size, std::string& problem) {
  void* module = open_module(problem);
  if (!module) return nullptr;
  const auto calls = reinterpret_cast<decltype(&::mmfree_mpi)>(::dlsym(module, "mmfree_mpi"));
  if (!calls || calls()->version != kMmfreeMpiVersion) {
    problem = "libmmfree_mpi.so is of another build than this program";
    return nullptr;
  }
  if (const char* wrong = calls()->start(&rank, &size)) {
    problem = wrong;
    return nullptr;
  }
  return std::make_unique<MpiTransport>(*calls());
}

}  // namespace mmfree
