// Fails each file call and each allocation of what reads and writes files, in turn: once, and from there on.
//   fail_calls COUNT SEED [OPERATION [CASE [END]]]     COUNT 0: all cases; else all file calls of save and COUNT
//   others;
//                                                      with a CASE that one alone, or those from it to before END
#include <omp.h>

#include <cstring>
#include <map>
#include <memory>
#include <set>

#include "core/rng.h"
#include "tests/support/child.h"
#include "tests/support/fault_main.h"
#include "tests/support/fault_operations.h"
#include "tests/support/interpose.h"

namespace mmfree {
namespace {

namespace fs = std::filesystem;
using interpose::Call;
using interpose::Op;
using interpose::Verdict;

constexpr unsigned kSeconds = 60;
constexpr int kShort = -1;  // in place of an errno: fewer bytes are transferred than were asked for
constexpr int kMostCalls = 1 << 20;

/// What becomes of which call of an operation.
struct Fault {
  bool memory = false;  ///< counts allocations, not file calls
  int64_t at = -1;
  int error = 0;  ///< an errno or kShort
  bool sticky = false;

  std::string describe(Op op) const {
    const std::string what = error == kShort ? "transfers less" : concat("fails with ", std::strerror(error));
    return concat(interpose::name_of(op), " (", memory ? "allocation " : "file call ", at, ") ", what,
                  sticky ? ", and so on from there" : "");
  }
};

bool transfers(Op op) { return op == Op::read || op == Op::pread || op == Op::write || op == Op::pwrite; }
bool syncs(Op op) { return op == Op::fsync || op == Op::fdatasync; }

/// Which errors a call may meet. A full disk fails only what needs room. The C++ library does not try again when it
/// opens folders, which no local file system interrupts.
bool can_fail(const Call& call, int error) {
  switch (error) {
    case kShort:
      return transfers(call.op) && call.size > 1;
    case ENOSPC:
    case EDQUOT:
      return call.creates || call.op == Op::write || call.op == Op::pwrite || call.op == Op::ftruncate ||
             syncs(call.op) || call.op == Op::close || call.op == Op::rename || call.op == Op::mkdir;
    case EINTR:
      return transfers(call.op) || syncs(call.op) || (call.op == Op::open && !call.library) ||
             call.op == Op::ftruncate || call.op == Op::close;
    case EINVAL:  // of file systems that cannot let two names change places
      return call.exchanges;
    case ENOMEM:
      return call.op == Op::allocate || call.op == Op::mmap;
    default:
      return call.op != Op::mmap;
  }
}

/// What is known of one call after a run without faults.
struct Seen {
  Op op;
  bool creates, exchanges, library;
  uint32_t size;
  Call call() const { return {.op = op, .size = size, .creates = creates, .exchanges = exchanges, .library = library}; }
};
struct Trace {
  int64_t count[2];  // of file calls, of allocations
  bool hit;
  Seen calls[2][kMostCalls];
};

/// Counts the calls, notes them, and applies a fault.
class Injector : public interpose::Watch {
 public:
  Injector(Trace& trace, const Fault& fault) : trace_(trace), fault_(fault) {}
  Verdict before(const Call& call) override {
    const bool memory = call.op == Op::allocate;
    const int64_t number = trace_.count[memory]++;
    if (fault_.at < 0) {
      if (number < kMostCalls)
        trace_.calls[memory][number] = {call.op, call.creates, call.exchanges, call.library, uint32_t(call.size)};
      return {};
    }
    const bool now = number == fault_.at || (fault_.sticky && number > fault_.at && can_fail(call, fault_.error));
    if (memory != fault_.memory || !now) return {};
    trace_.hit = true;
    if (fault_.error == kShort) return {.most = (call.size + 1) / 2};
    return {.error = fault_.error};
  }

 private:
  Trace& trace_;
  const Fault fault_;
};

class FailCalls {
 public:
  explicit FailCalls(FaultOperation& operation) : operation_(operation) {
    require(in_child([&] { operation_.prepare(before_); }, kSeconds), "its preparation");
    fresh_folder();
    unchanged_ = contents(folder_);
    require(in_child([&] { operation_.check(folder_, false); }, kSeconds), "the check before it");
    require(in_child([&] { run({}); }, kSeconds), "the operation itself");
    require(in_child([&] { operation_.check(folder_, true); }, kSeconds), "the check after it");
    list_faults();
    std::printf("fail_calls: %s makes %lld file calls and %lld allocations: %zu cases\n", operation_.name(),
                (long long)trace_->count[0], (long long)trace_->count[1], faults_.size());
  }

  const std::vector<Fault>& faults() const { return faults_; }

  /// One case. Returns what is wrong, empty if nothing is.
  std::string run_case(const Fault& fault, Tally& tally) {
    const Op op = trace_->calls[fault.memory][fault.at].op;
    fresh_folder();
    trace_->hit = false;
    const Ended ended = in_child([&] { run(fault); }, kSeconds);
    const std::string wrong = judge(fault, op, ended);
    if (!wrong.empty()) return fault.describe(op) + ": " + wrong;
    tally.count(ended.ok() ? "went well in spite of it" : "ended with an error");
    // With every byte as before it loads as before.
    if (!ended.ok() && contents(folder_) == unchanged_) return {};
    const Ended check = in_child([&] { operation_.check(folder_, ended.ok()); }, kSeconds);
    if (!check.ok()) return concat(fault.describe(op), ": ", ended.describe(), "; then: ", check.describe());
    return {};
  }

 private:
  void require(const Ended& ended, const char* what) {
    MMFREE_CHECK(Error, ended.ok(), operation_.name(), ", without a fault: ", what, ": ", ended.describe());
  }

  void fresh_folder() {
    fs::remove_all(folder_);
    fs::copy(before_, folder_, fs::copy_options::recursive);
  }

  /// Every file below a folder, by its path there.
  static std::map<std::string, std::string> contents(const std::string& folder) {
    std::map<std::string, std::string> all;
    for (const auto& entry : fs::recursive_directory_iterator(folder))
      if (entry.is_regular_file()) all[fs::relative(entry.path(), folder).string()] = slurp(entry.path().string());
    return all;
  }

  /// In the child.
  void run(const Fault& fault) {
    // It is alive in the exit handlers too: the disk stays full.
    auto* injector = new Injector(*trace_, fault);
    trace_->count[0] = trace_->count[1] = 0;
    operation_.run(folder_, [&] { interpose::set_watch(injector); });
  }

  void list_faults() {
    for (const bool memory : {false, true}) {
      MMFREE_CHECK(Error, trace_->count[memory] <= kMostCalls, operation_.name(), ": too many calls to list");
      for (int64_t i = 0; i < trace_->count[memory]; ++i)
        for (const int error : {EIO, ENOSPC, EDQUOT, EINTR, EINVAL, kShort, ENOMEM})
          for (const bool sticky : {false, true})
            if ((error == ENOMEM || !memory) && can_fail(trace_->calls[memory][i].call(), error) &&
                !(error == EINTR && sticky))
              faults_.push_back({memory, i, error, sticky});
    }
  }

  std::string judge(const Fault& fault, Op op, const Ended& ended) const {
    if (ended.status == kFalseSuccess) return ended.describe();
    // HDF5, SentencePiece, oneDNN and libgomp may end a process in any way when they get no memory.
    if (fault.memory) return {};
    if (ended.signal) return ended.describe();
    const bool harmless = (fault.error == EINTR || fault.error == EINVAL || fault.error == kShort) && trace_->hit;
    if (ended.ok()) return ended.err.empty() ? "" : "succeeds, but says " + ended.err;
    if (harmless) return "is not tried again: " + ended.describe();
    const size_t end = ended.err.find('\n');
    if (end == std::string::npos || end + 1 != ended.err.size()) return "not one line: " + ended.describe();
    const auto says = [&](const std::string& what) { return ended.err.find(what) != std::string::npos; };
    if (!says(folder_)) return "names no path: " + ended.describe();
    if (!says(std::strerror(fault.error)) && op != Op::mmap) return "does not name the cause: " + ended.describe();
    return {};
  }

  FaultOperation& operation_;
  TempDir dir_;
  std::string before_ = dir_ / "before", folder_ = dir_ / "folder";
  std::map<std::string, std::string> unchanged_;
  Shared<Trace> trace_;
  std::vector<Fault> faults_;
};

/// The numbers of the cases to run, ascending.
std::set<size_t> choose(const std::vector<Fault>& faults, bool all, bool all_file_calls, int64_t count,
                        const RandomStream& random) {
  std::set<size_t> chosen;
  for (size_t i = 0; i < faults.size(); ++i)
    if (all || (all_file_calls && !faults[i].memory)) chosen.insert(i);
  for (uint64_t i = 0; !all && i < uint64_t(count); ++i)
    chosen.insert(size_t(random.uniform(i) * double(faults.size())));
  return chosen;
}

int main(int argc, char** argv) {
  MMFREE_CHECK(UsageError, argc >= 3 && argc <= 6, "usage: fail_calls COUNT SEED [OPERATION [CASE [END]]]");
  omp_set_num_threads(1);
  // Its faults are made, so no disk need be waited for.
  if (fs::is_directory("/dev/shm")) setenv("TMPDIR", "/dev/shm", 0);
  const int64_t count = std::atoll(argv[1]);
  const uint64_t seed = std::strtoull(argv[2], nullptr, 10);
  const std::string only = argc > 3 ? argv[3] : "";
  const auto operations = fault_operations();
  std::vector<std::unique_ptr<FailCalls>> programs;
  std::vector<std::set<size_t>> chosen;
  int64_t cases = 0;
  for (const auto& operation : operations) {
    if (!only.empty() && only != operation->name()) continue;
    const auto& program = programs.emplace_back(std::make_unique<FailCalls>(*operation));
    const int64_t share = (count + int64_t(operations.size()) - 1) / int64_t(operations.size());
    chosen.push_back(choose(program->faults(), count == 0, std::string(operation->name()) == "save", share,
                            RandomStream(seed, 0, operation->name())));
    if (argc > 4) {
      chosen.back().clear();
      const auto first = size_t(std::atoll(argv[4])), end = argc > 5 ? size_t(std::atoll(argv[5])) : first + 1;
      for (size_t i = first; i < std::min(end, program->faults().size()); ++i) chosen.back().insert(i);
    }
    cases += int64_t(chosen.back().size());
  }
  Tally tally("fail_calls", cases);
  size_t at = 0;
  for (const auto& operation : operations) {
    if (!only.empty() && only != operation->name()) continue;
    for (const size_t i : chosen[at]) {
      const std::string wrong = programs[at]->run_case(programs[at]->faults().at(i), tally);
      if (!wrong.empty())
        tally.fail(concat(operation->name(), ", case ", i, ": ", wrong),
                   concat("fail_calls ", count, " ", seed, " ", operation->name(), " ", i));
      tally.done_one();
    }
    ++at;
  }
  return tally.finish();
}

}  // namespace
}  // namespace mmfree

int main(int argc, char** argv) {
  return mmfree::fault_main([&] { return mmfree::main(argc, argv); });
}
