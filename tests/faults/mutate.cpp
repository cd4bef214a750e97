#include <omp.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <set>

#include "core/rng.h"
#include "tests/support/hostile_originals.h"
#include "tests/support/interpose.h"
#include "tests/support/mutation.h"

// mutate COUNT SEED [READER [FIRST]]: damages files and has them read. A damaged file must be refused in one clear
// line, or be harmless: what is read equals the original to the bit, or, where hashes are made right again or there are
// none, keeps the reader's promises. No crash, no hang, and no memory beyond a multiple of the file's size. COUNT cases
// of READER from number FIRST on, or COUNT in all, spread over the readers.

namespace mmfree {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kLimited = false;  // the sanitizer itself maps terabytes
#else
constexpr bool kLimited = true;
#endif

/// Keeps the size of the largest allocation: one that is never touched shows nowhere else.
class LargestRequest : public interpose::Watch {
 public:
  interpose::Verdict before(const interpose::Call& call) override {
    if (call.op == interpose::Op::allocate) bytes = std::max<size_t>(bytes, call.size);
    return {};
  }
  std::atomic<size_t> bytes{0};
};
LargestRequest largest_request;

constexpr int64_t kBatch = 250;        // cases a process does before a fresh one takes over
constexpr unsigned kMostSeconds = 20;  // for one case
constexpr size_t kFactor = 64;         // memory in all, as a multiple of the file's size; a JSON tree needs about 40

/// What the process that reads tells the one that watches; it survives a crash.
struct Report {
  int64_t at, refused, harmless;
  char failure[3000];
};

/// A reader with good files of its own and one of each other kind.
struct Target {
  const HostileReader& reader;
  TempDir dir;
  std::string path, first, second;
  std::set<std::string> good;  ///< what the good files hold

  explicit Target(const HostileReader& r) : reader(r), path(dir / "f/" + r.file) {
    std::filesystem::create_directory(dir / "f");
    second = hostile_original(r, dir / "f", 1);
    good.insert(r.load(path));
    first = hostile_original(r, dir / "f", 0);
    good.insert(r.load(path));
  }
};

/// The damaged file of one case; `hashes_fit` tells whether its hashes were made right, if it has any.
std::string damaged(const Target& t, const std::vector<std::string>& strangers, Mutator& m, bool* hashes_fit) {
  const auto repair = t.reader.repair;
  *hashes_fit = !repair || m.below(2);
  const std::string& base = m.below(4) ? t.first : t.second;
  const std::string& other = m.below(2) ? t.second : m.below(2) ? t.first : strangers[m.below(strangers.size())];
  const size_t kind = m.below(20);
  if (kind == 0) return strangers[m.below(strangers.size())];
  if (kind == 1) return t.second;
  if (kind == 2) return t.first.substr(0, m.below(t.first.size()));
  if (kind == 3) {
    const size_t at = m.below(std::min(t.first.size(), t.second.size()));
    const std::string glued = t.first.substr(0, at) + t.second.substr(at);
    return repair && *hashes_fit ? repair(glued.substr(t.reader.skip)) : glued;
  }
  if (!repair || !*hashes_fit) return m.mutate(base, other);
  return repair(m.mutate(base.substr(t.reader.skip), other));
}

size_t mapped_bytes() {
  size_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return pages * size_t(sysconf(_SC_PAGESIZE));
}

void limit_memory(size_t bytes) {
  rlimit limit;
  getrlimit(RLIMIT_AS, &limit);
  limit.rlim_cur = bytes;
  if (kLimited) setrlimit(RLIMIT_AS, &limit);
}

/// Reads one damaged file; empty if all is as it should be.
std::string fault_of(const Target& t, const std::string& bytes, bool hashes_fit, Report* report) {
  spit(t.path, bytes);
  const size_t most = t.reader.constant_bytes + 8 * bytes.size();
  limit_memory(mapped_bytes() + 2 * t.reader.constant_bytes + kFactor * bytes.size());
  largest_request.bytes = 0;
  std::string fault, digest;
  bool refused = false;
  alarm(kMostSeconds);
  try {
    digest = t.reader.load(t.path);
  } catch (const Error& e) {
    refused = true;
    fault = fault_in_refusal(e, t.dir.path());
  } catch (const std::bad_alloc&) {
    fault = "out of memory";
  } catch (const std::exception& e) {
    fault = concat("not a refusal: ", quote(e.what()));
  }
  alarm(0);
  limit_memory(RLIM_INFINITY);
  if (fault.empty() && largest_request.bytes > most)
    fault = concat("asks for ", largest_request.bytes, " bytes at once for a file of ", bytes.size());
  if (fault.empty() && !refused && !hashes_fit && !t.good.count(digest))
    fault = "damage behind a hash was read as if it were good";
  ++(refused ? report->refused : report->harmless);
  return fault;
}

void read_batch(const Target& t, const std::vector<std::string>& strangers, uint64_t seed, int64_t end,
                Report* report) {
  for (; report->at < end; ++report->at) {
    Mutator m(hash64(concat(seed, ' ', t.reader.name, ' ', report->at)));
    bool hashes_fit = false;
    const std::string bytes = damaged(t, strangers, m, &hashes_fit);
    const std::string fault = fault_of(t, bytes, hashes_fit, report);
    if (fault.empty()) continue;
    std::snprintf(report->failure, sizeof report->failure, "%s", fault.c_str());
    return;
  }
}

/// Runs cases [begin, end) of one reader; returns how many went wrong.
int64_t attack(const HostileReader& reader, const std::vector<std::string>& strangers, uint64_t seed, int64_t begin,
               int64_t end, Report* report) {
  const Target target(reader);
  const auto start = std::chrono::steady_clock::now();
  int64_t wrong = 0, told = begin;
  *report = {begin, 0, 0, {}};
  while (report->at < end && wrong < 10) {
    report->failure[0] = 0;
    std::fflush(stdout);
    const pid_t process = fork();
    if (process == 0) {
      read_batch(target, strangers, seed, std::min(end, report->at + kBatch), report);
      std::fflush(stdout);
      _exit(0);  // the exit handlers are the parent's
    }
    int status = 0;
    waitpid(process, &status, 0);
    std::string fault = report->failure;
    if (WIFSIGNALED(status)) fault = concat(WTERMSIG(status) == SIGALRM ? "hangs" : strsignal(WTERMSIG(status)));
    if (WIFEXITED(status) && WEXITSTATUS(status)) fault = concat("exits with ", WEXITSTATUS(status));
    if (!fault.empty()) {
      std::printf("FAILED %s case %lld, seed %llu: %s\n  again: mutate 1 %llu %s %lld\n", reader.name.c_str(),
                  static_cast<long long>(report->at), static_cast<unsigned long long>(seed), fault.c_str(),
                  static_cast<unsigned long long>(seed), reader.name.c_str(), static_cast<long long>(report->at));
      ++wrong;
      ++report->at;
    }
    if (report->at - told < 5000) continue;
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::printf("%s: %lld of %lld, %.0f s to go\n", reader.name.c_str(), static_cast<long long>(report->at - begin),
                static_cast<long long>(end - begin), seconds / double(report->at - begin) * double(end - report->at));
    told = report->at;
  }
  std::printf("%-12s %7lld cases: %lld refused, %lld harmless, %lld WRONG\n", reader.name.c_str(),
              static_cast<long long>(report->at - begin), static_cast<long long>(report->refused),
              static_cast<long long>(report->harmless), static_cast<long long>(wrong));
  return wrong;
}

int run(int argc, char** argv) {
  MMFREE_CHECK(UsageError, argc >= 3 && argc <= 5, "usage: mutate COUNT SEED [READER [FIRST]]");
  const int64_t count = std::stoll(argv[1]), first = argc > 4 ? std::stoll(argv[4]) : 0;
  const uint64_t seed = std::stoull(argv[2]);
  setenv("TMPDIR", "/dev/shm", std::filesystem::exists("/dev/shm") ? 0 : 1);
  omp_set_num_threads(1);
  auto* report =
      static_cast<Report*>(mmap(nullptr, sizeof(Report), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  std::vector<std::string> strangers = {"", std::string(5000, '\0')};
  for (const HostileReader& reader : hostile_readers()) {
    const TempDir dir;
    std::filesystem::create_directory(dir / "f");
    strangers.push_back(hostile_original(reader, dir / "f", 0));
  }
  int64_t wrong = 0, done = 0;
  const std::vector<HostileReader>& all = hostile_readers();
  for (size_t i = 0; i < all.size(); ++i) {
    if (argc > 3 && all[i].name != hostile_reader(argv[3]).name) continue;
    const int64_t share = argc > 3 ? count : count / int64_t(all.size()) + (int64_t(i) < count % int64_t(all.size()));
    wrong += attack(all[i], strangers, seed, first, first + share, report);
    done += share;
  }
  std::printf("%lld damaged files, %lld wrong\n", static_cast<long long>(done), static_cast<long long>(wrong));
  return wrong ? 1 : 0;
}

}  // namespace
}  // namespace mmfree

int main(int argc, char** argv) {
  mmfree::interpose::set_watch(&mmfree::largest_request);
  try {
    return mmfree::run(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "mutate: %s\n", e.what());
    return 2;
  }
}
